"""What a model's folder says about how to sample, read without loading the model."""

from __future__ import annotations

import json
from pathlib import Path

from videomaker import default_model_path
from videomaker.errors import InputError

from .request import Settings

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
}


def model_folder(source: str) -> Path:
    """The folder of a model: `"default"` is the embedded one."""
    return default_model_path() if source == "default" else Path(source)


def generation_defaults(folder: Path) -> tuple[Settings, str | None]:
    """What a model's `generation.json` says: settings (those it leaves out are None) and a note to the user.

    Raises:
        InputError: the file is not JSON.
    """
    path = folder / "generation.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    settings = {_GENERATION_KEYS[key]: value for key, value in values.items() if key in _GENERATION_KEYS}
    return Settings(**settings), values.get("note")
