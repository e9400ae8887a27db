"""What the pipeline is called with: the types of its arguments, and what stays open filled in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import PipelineImageInput

from .windows import Windows

Images = PipelineImageInput
Generators = torch.Generator | list[torch.Generator]

TRAINED_FRAMES = 16  # of AnimateDiff and the paper
PAPER = {"num_frames": TRAINED_FRAMES, "num_inference_steps": 30, "guidance_scale": 8.0, "negative_prompt": None}


@dataclass(frozen=True)
class Open:
    """Settings of a call, those left open taken from the model's `generation.json`, else from the paper."""

    num_frames: int
    height: int
    width: int
    num_inference_steps: int
    guidance_scale: float | list[float]
    negative_prompt: str | list[str] | None


class Inputs(NamedTuple):
    """What the denoising starts from.

    Attributes:
        noise: of the frames, `[B, C, F, h, w]`.
        reference: latents `[B, C, R, h, w]`.
        text: `[2B or B, L, E]`.
        guidance: `[B, 1, 1, 1, 1]`, or None without.
        windows: of a long video.
    """

    noise: torch.Tensor
    reference: torch.Tensor
    text: torch.Tensor
    guidance: torch.Tensor | None
    windows: Windows | None = None


def fill_in(side: int, defaults: dict[str, Any], asked: dict[str, Any]) -> Open:
    """The settings of a call.

    Args:
        side: of the pictures that the UNet was trained for, in pixels.
        defaults: of the model.
        asked: by the caller; None is open.
    """
    layers: tuple[dict[str, Any], ...] = (asked, defaults, {**PAPER, "height": side, "width": side})

    def first_said(name: str) -> Any:
        return next((x[name] for x in layers if x.get(name) is not None), None)

    return Open(**{name: first_said(name) for name in Open.__dataclass_fields__})


def callback_names(callback: Any, names: list[str] | None) -> list[str]:
    """The tensors that a callback sees: those asked for, or those that diffusers' own callbacks name."""
    if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):
        return list(callback.tensor_inputs)
    return ["latents"] if names is None else list(names)
