"""Stable Diffusion 1.5 with AnimateDiff at full size and random weights: what benchmarks run, nothing downloaded."""

from __future__ import annotations

import torch
from transformers import CLIPTokenizer

from videomaker import default_model_path
from videomaker.pipeline import VideoMakerPipeline
from videomaker.weights.sd15 import sd15_scheduler, sd15_text_encoder, sd15_unet, sd15_vae


def sd15_pipeline(
    *, device: str = "cpu", dtype: torch.dtype = torch.float32, attention_backend: str = "auto", seed: int = 0
) -> VideoMakerPipeline:
    """The whole pipeline on `device`, `"meta"` included; the tokenizer is the embedded model's, one token a byte."""
    torch.manual_seed(seed)
    pipe = VideoMakerPipeline(
        vae=sd15_vae(device=device, dtype=dtype),
        text_encoder=sd15_text_encoder(device=device, dtype=dtype),
        tokenizer=CLIPTokenizer.from_pretrained(default_model_path() / "tokenizer"),
        unet=sd15_unet(device=device, dtype=dtype),
        motion_adapter=None,
        scheduler=sd15_scheduler(),
        attention_backend=attention_backend,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
