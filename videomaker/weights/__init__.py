"""Weights from files: read, checked against an architecture, loaded, converted, saved."""

from .checkpoint import (
    CoverageReport,
    check_state_dict,
    load_into,
    load_text_encoder,
    read_state_dict,
    save_partial,
)

__all__ = [
    "CoverageReport",
    "check_state_dict",
    "load_into",
    "load_text_encoder",
    "read_state_dict",
    "save_partial",
]
