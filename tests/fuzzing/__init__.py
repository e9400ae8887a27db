"""A fuzz of what people hand over: one generator a kind of input, each case run in a process of its own with limits."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .case import Case
    from .world import World

KINDS = (
    "pictures", "prompts", "values", "outputs", "records", "weights", "folders", "manifests", "videos",
    "configurations", "commands", "attention", "calls", "places", "numbers", "suites", "parts",
    "surface", "surroundings",
)  # fmt: skip


def generator(name: str, world: World) -> Callable[[Path], Case]:
    """What makes the case `KIND:SEED:NUMBER` in a folder."""
    from .case import Rng

    module = importlib.import_module(f".{name.split(':')[0]}", __name__)
    return lambda folder: module.case(Rng(name), world, folder)
