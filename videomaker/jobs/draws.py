"""The noise of records of version 1, whose reference was drawn before the frames."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.utils.torch_utils import randn_tensor

from videomaker.pipeline import VideoMakerPipeline

from .request import Job
from .resolved import ResolvedSettings


def first_version_latents(pipe: VideoMakerPipeline, batch: Sequence[Job], settings: ResolvedSettings) -> torch.Tensor:
    """The frames' noise `[B, C, F, h, w]` as it came after the references' from each job's generator.

    Given to the pipeline as `latents`, it leaves fresh generators to the references, which get their old noise too.
    """
    size = (settings.height // pipe.vae_scale_factor, settings.width // pipe.vae_scale_factor)
    num_references = len(batch[0].references)
    noise = []
    for job in batch:
        generator = torch.Generator().manual_seed(job.seed)
        reference = (1, pipe.vae.config.latent_channels, num_references, *size)
        randn_tensor(reference, generator=generator, device=generator.device, dtype=pipe.vae.dtype)
        frames = (1, pipe.unet.config.in_channels, settings.frames, *size)
        noise.append(randn_tensor(frames, generator=generator, device=generator.device, dtype=pipe.text_encoder.dtype))
    return torch.cat(noise).to(pipe._execution_device)
