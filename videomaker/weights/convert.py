"""Published checkpoints made into safetensors, checked against the architecture that they are for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from diffusers import UNetMotionModel

from videomaker.errors import InputError
from videomaker.files import read_json, sha256

from .checkpoint import CoverageReport, aligned, check_state_dict, read_state_dict, save_partial


def convert_checkpoint(source: Path, output: Path, *, model: Path | None = None) -> CoverageReport:
    """Writes a checkpoint as safetensors with the names that `load_videomaker_weights` expects.

    Args:
        source: a torch state dict (`.bin`) or safetensors, full or partial.
        output: the `.safetensors` file.
        model: a folder in the diffusers format whose UNet the checkpoint is for; `None` is AnimateDiff on Stable
            Diffusion 1.5.

    Returns:
        What the checkpoint covers.

    Raises:
        InputError: the checkpoint cannot be read or does not fit, or `output` is not a `.safetensors` file.
    """
    if output.suffix != ".safetensors":
        raise InputError(f"output {output} must end in .safetensors")
    state = read_state_dict(source)
    architecture = _architecture(model, state)
    weights = aligned(state, architecture)
    report = check_state_dict(architecture, weights)
    save_partial(weights, output, metadata={"source": source.name, "source_sha256": sha256(source)})
    return report


def _architecture(model: Path | None, names: Iterable[str]) -> UNetMotionModel:
    """The UNet without its weights: on the meta device it needs no memory."""
    with torch.device("meta"):
        if model is not None:
            return UNetMotionModel.from_config(_unet_config(model))
        return UNetMotionModel(
            sample_size=64,
            cross_attention_dim=768,
            # AnimateDiff's second motion module has a middle block, the first and third have none.
            use_motion_mid_block=any(name.startswith("mid_block.motion_modules") for name in names),
        )


def _unet_config(model: Path) -> dict:
    try:
        config = read_json(model / "unet" / "config.json")
    except InputError as error:
        raise InputError(f"model {model} has no unet/config.json that can be read: {error}") from error
    if config.get("_class_name") != "UNetMotionModel":
        raise InputError(f"model {model} has a {config.get('_class_name')}, not a UNetMotionModel")
    return config
