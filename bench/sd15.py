"""Stable Diffusion 1.5 with AnimateDiff at full size and random weights: what benchmarks run, with nothing downloaded.

The configurations are those of the published folders `stable-diffusion-v1-5` and `animatediff-motion-adapter-v1-5-3`.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNetMotionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from videomaker import default_model_path
from videomaker.pipeline import ANIMATEDIFF_SCHEDULE, VideoMakerPipeline

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
    """The UNet with its motion modules, 1.28 billion parameters."""
    return _build(lambda: UNetMotionModel(**UNET), device, dtype)


def sd15_pipeline(
    *, device: str = "cpu", dtype: torch.dtype = torch.float32, attention_backend: str = "auto", seed: int = 0
) -> VideoMakerPipeline:
    """The whole pipeline on `device`, `"meta"` included; the tokenizer is the embedded model's, one token a byte."""
    torch.manual_seed(seed)
    pipe = VideoMakerPipeline(
        vae=_build(lambda: AutoencoderKL(**VAE), device, dtype),
        text_encoder=_build(lambda: CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER)), device, dtype),
        tokenizer=CLIPTokenizer.from_pretrained(default_model_path() / "tokenizer"),
        unet=sd15_unet(device=device, dtype=dtype),
        motion_adapter=None,
        scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012, **ANIMATEDIFF_SCHEDULE),
        attention_backend=attention_backend,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _build(make, device: str, dtype: torch.dtype) -> torch.nn.Module:
    with torch.device(device):
        return make().to(dtype).eval()
