"""What the pipeline is called with: the types of its arguments, and what stays open filled in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import PipelineImageInput

Images = PipelineImageInput
Generators = torch.Generator | list[torch.Generator]

PAPER = {"num_frames": 16, "num_inference_steps": 30, "guidance_scale": 8.0, "negative_prompt": None}


@dataclass(frozen=True)
class Open:
    """Settings of a call, those left open taken from the model's `generation.json`, else from the paper."""

    num_frames: int
    height: int
    width: int
    num_inference_steps: int
    guidance_scale: float | list[float]
    negative_prompt: str | list[str] | None


def fill_in(side: int, defaults: dict[str, Any], asked: dict[str, Any]) -> Open:
    """The settings of a call.

    Args:
        side: of the pictures that the UNet was trained for, in pixels.
        defaults: of the model.
        asked: by the caller; None is open.
    """
    layers = (asked, defaults, {**PAPER, "height": side, "width": side})
    names = Open.__dataclass_fields__
    return Open(**{name: next((x[name] for x in layers if x.get(name) is not None), None) for name in names})


def callback_names(callback: Any, names: list[str] | None) -> list[str]:
    """The tensors that a callback sees: those asked for, or those that diffusers' own callbacks name."""
    if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):
        return list(callback.tensor_inputs)
    return ["latents"] if names is None else list(names)
