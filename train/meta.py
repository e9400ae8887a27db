"""A pipeline of shapes alone, from the configurations in its folder: nothing is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, MotionAdapter, UNet2DConditionModel, UNetMotionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from videomaker.errors import InputError
from videomaker.weights import sd15

from .config import ModelConfig

SD15 = "sd15"  # as `model.path`: Stable Diffusion 1.5 with AnimateDiff


@dataclass
class MetaParts:
    """What `prepare_denoiser` takes of a pipeline; the modules are on "meta"."""

    unet: UNetMotionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    scheduler: DDIMScheduler
    vae_scale_factor: int


def meta_pipeline(model: ModelConfig, dtype: torch.dtype) -> MetaParts:
    """The parts of the pipeline that a run trains.

    Raises:
        InputError: `model.path` is neither "sd15" nor a diffusers pipeline folder.
    """
    if model.path == SD15:
        where: dict[str, Any] = {"device": "meta", "dtype": dtype}
        parts: dict[str, Any] = {
            "unet": sd15.sd15_unet(**where),
            "vae": sd15.sd15_vae(**where),
            "text_encoder": sd15.sd15_text_encoder(**where),
            "scheduler": sd15.sd15_scheduler(),
        }
    else:
        parts = _from_folder(model, dtype)
    return MetaParts(**parts, vae_scale_factor=2 ** (len(parts["vae"].config.block_out_channels) - 1))


def _from_folder(model: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    folder = Path(model.path)
    if not (folder / "model_index.json").is_file():
        raise InputError(
            f"model.path={model.path!r} is no diffusers pipeline folder (it has no model_index.json); "
            f"{SD15} counts for the shapes of Stable Diffusion 1.5"
        )
    with torch.device("meta"):
        parts: dict[str, nn.Module] = {
            "unet": _unet(folder / "unet", model.motion_adapter),
            "vae": AutoencoderKL.from_config(AutoencoderKL.load_config(Path(model.vae or folder / "vae"))),
            "text_encoder": CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder")),
        }
    loaded = {name: part.to(dtype).eval() for name, part in parts.items()}
    return {**loaded, "scheduler": DDIMScheduler.from_pretrained(folder / "scheduler")}


def _unet(folder: Path, motion_adapter: str) -> UNetMotionModel:
    config = UNetMotionModel.load_config(folder)
    if config.get("_class_name") == "UNetMotionModel":
        return UNetMotionModel.from_config(config)
    if not motion_adapter:
        raise InputError(f"{folder} is a UNet of pictures; give its motion modules in model.motion_adapter")
    adapter = MotionAdapter.from_config(MotionAdapter.load_config(motion_adapter))
    return UNetMotionModel.from_unet2d(UNet2DConditionModel.from_config(config), adapter, load_weights=False)
