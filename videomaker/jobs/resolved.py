"""A request with nothing left open: what `prepare` makes of `request.Recipe`."""

from __future__ import annotations

from dataclasses import dataclass, field

from .request import Fit, Output, Recipe, Settings


# Every field is declared anew with field(), which takes the default away: what is forgotten is an error, not None.
@dataclass(frozen=True, kw_only=True)
class ResolvedSettings(Settings):
    """`Settings` in which everything is said."""

    steps: int = field()
    guidance: float = field()
    negative_prompt: str = field()
    width: int = field()
    height: int = field()
    frames: int = field()
    fps: float = field()
    fit: Fit = field()


@dataclass(frozen=True, kw_only=True)
class ResolvedOutput(Output):
    """`Output` in which everything is said."""

    upscale: int = field()


@dataclass(frozen=True, kw_only=True)
class ResolvedRecipe(Recipe):
    """`Recipe` in which everything is said; its model has a device, a dtype and, of the hub, a revision."""

    settings: ResolvedSettings = field()
    output: ResolvedOutput = field()
