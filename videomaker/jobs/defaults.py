"""What a model's folder says about how to sample, read without loading the model."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, replace
from pathlib import Path

from videomaker import default_model_path
from videomaker.errors import InputError
from videomaker.generation import read_generation_defaults
from videomaker.media_limits import check_writer, default_upscale
from videomaker.model_files import read_sizes

from .request import ModelSpec, Output, Settings
from .resolved import ResolvedOutput, ResolvedSettings

PAPER_SETTINGS = Settings(steps=30, guidance=8.0, negative_prompt="", frames=16, fps=8, fit="stretch")
# What the keys of a model's generation.json, which are those of the pipeline's call, are called here.
_GENERATION_KEYS = {
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "negative_prompt": "negative_prompt",
    "width": "width",
    "height": "height",
    "num_frames": "frames",
    "fps": "fps",
    "fit": "fit",
}


def model_folder(source: str) -> Path:
    """The folder or single file of a model: `"default"` is the embedded one.

    Raises:
        InputError: a model of the hub is neither in the cache nor to be had.
    """
    if source == "default":
        return default_model_path()
    if os.path.exists(source):  # Path.exists raises for a name that is too long
        return Path(source)
    from videomaker.weights.sources import local_path  # late: the room's other files load torch

    return local_path(source)


def generation_defaults(folder: Path) -> tuple[Settings, str | None]:
    """What a model's `generation.json` says: settings (those it leaves out are None) and a note to the user.

    Raises:
        InputError: the file is not JSON, or says something that cannot be.
    """
    values = read_generation_defaults(folder).given()
    settings = {_GENERATION_KEYS[key]: value for key, value in values.items() if key in _GENERATION_KEYS}
    return Settings(**settings), values.get("note")


def resolve_settings(asked: Settings, defaults: Settings, side: int) -> ResolvedSettings:
    """Fills in what is left open: from the model's defaults, else the paper's, in pictures of `side` pixels.

    Raises:
        InputError: guidance or fps are no usable numbers.
    """
    layers = [asdict(asked), asdict(defaults), asdict(replace(PAPER_SETTINGS, width=side, height=side))]
    settings = ResolvedSettings(**{name: next(x[name] for x in layers if x[name] is not None) for name in layers[0]})
    if not (math.isfinite(settings.guidance) and math.isfinite(settings.fps) and settings.fps > 0):
        raise InputError(f"guidance {settings.guidance} and fps {settings.fps} must be finite, and fps positive")
    return settings


def resolve_output(asked: Output, settings: ResolvedSettings) -> ResolvedOutput:
    """Fills in how often a tiny video's pixels are repeated.

    Raises:
        InputError: the writer of the format cannot make such a video.
    """
    factor = asked.upscale
    if factor is None:
        factor = 1 if asked.format == "frames" else default_upscale(settings.height, settings.width)
    check_writer(asked.format, settings.frames, settings.height * factor, settings.width * factor, settings.fps)
    return ResolvedOutput(format=asked.format, upscale=factor)


def settings_without_model(spec: ModelSpec, asked: Settings, num_references: int = 1) -> ResolvedSettings | None:
    """The settings as `prepare` will resolve them, from the model's configurations alone; None if they do not tell.

    Raises:
        InputError: a size, a length or the model's `generation.json` cannot be.
    """
    folder = model_folder(spec.source)
    defaults, _ = generation_defaults(folder)
    try:
        factor, side, limit = read_sizes(folder)
    except InputError:
        return None  # loading the model says what is wrong with it
    settings = resolve_settings(asked, defaults, side)
    for name in ("width", "height"):
        if getattr(settings, name) % factor:
            raise InputError(f"{name} is {getattr(settings, name)}; it must be a positive multiple of {factor}")
    if limit is not None and num_references >= limit:  # more frames than fit are made in windows
        raise InputError(f"{num_references} references leave no frame of the {limit} positions of the motion modules")
    return settings
