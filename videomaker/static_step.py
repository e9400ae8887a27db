"""Moved to `videomaker.compiled`; kept for programs that were written against 0.1."""

from videomaker.compiled.processors import prepare_unet, project_text
from videomaker.compiled.sampler import Approximations, StaticSampler, ddim_weights
from videomaker.compiled.step import decode_pictures, denoising_step

__all__ = [
    "Approximations",
    "StaticSampler",
    "ddim_weights",
    "decode_pictures",
    "denoising_step",
    "prepare_unet",
    "project_text",
]
