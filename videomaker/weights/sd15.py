"""Shapes of Stable Diffusion 1.5 with AnimateDiff: modules at full size with random weights, nothing downloaded.

The configurations are those of the published folders `stable-diffusion-v1-5` and `animatediff-motion-adapter-v1-5-3`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNetMotionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

UNET = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "num_attention_heads": 8,
    "motion_num_attention_heads": 8,
    "motion_max_seq_length": 32,
    "use_motion_mid_block": False,
}
VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "sample_size": 512,
}
TEXT_ENCODER = {  # CLIP ViT-L/14
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
}


def sd15_unet(*, device: str = "cpu", dtype: torch.dtype = torch.float32) -> UNetMotionModel:
    """The UNet with its motion modules, 1.28 billion parameters; on `"meta"` without memory."""
    return _build(lambda: UNetMotionModel(**UNET), device, dtype)


def sd15_vae(*, device: str = "cpu", dtype: torch.dtype = torch.float32) -> AutoencoderKL:
    """The autoencoder."""
    return _build(lambda: AutoencoderKL(**VAE), device, dtype)


def sd15_text_encoder(*, device: str = "cpu", dtype: torch.dtype = torch.float32) -> CLIPTextModel:
    """The text encoder."""
    return _build(lambda: CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER)), device, dtype)


def sd15_scheduler() -> DDIMScheduler:
    """AnimateDiff's noise schedule."""
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="linear", clip_sample=False, timestep_spacing="linspace",
        steps_offset=1,
    )  # fmt: skip


def _build(make: Callable[[], nn.Module], device: str, dtype: torch.dtype) -> nn.Module:
    with torch.device(device):
        return make().to(dtype).eval()
