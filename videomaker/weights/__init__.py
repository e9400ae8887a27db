"""Weights from files: read, checked against an architecture, loaded, converted, saved.

Names resolve on first use: where a model lies (`sources`) is told without loading torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = [
    "CoverageReport",
    "check_state_dict",
    "load_into",
    "load_text_encoder",
    "read_state_dict",
    "save_partial",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.checkpoint"), name)
