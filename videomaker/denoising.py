"""One prediction of the noise with the reference as an extra frame: what inference and training share.

Letters: B videos, C latent channels, F frames, R references, H×W latent size, L text tokens of width E.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNetMotionModel

from videomaker.attention import ReferenceLayout

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")  # of schedulers: the noise, the clean sample, the velocity


def predict_noise(
    unet: UNetMotionModel,
    latents: torch.Tensor,
    reference_latents: torch.Tensor | None,
    timestep: torch.Tensor | int,
    prompt_embeds: torch.Tensor,
    *,
    cross_attention_kwargs: dict[str, Any] | None = None,
    added_cond_kwargs: dict[str, Any] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The UNet's noise for the frames and for the references, which lie last in time (arXiv 2412.19645, eq. 3-5).

    Args:
        unet: a UNetMotionModel with PISA processors (`videomaker.attention.install_pisa`).
        latents: the noisy frames, `[B, C, F, H, W]`.
        reference_latents: `[B, C, R, H, W]`, clean at inference and lightly noised in training; `None` is plain
            AnimateDiff.
        timestep: one for all, or `[B]`; references get that of their frames.
        prompt_embeds: `[B, L, E]`, repeated for every frame and reference here.
        cross_attention_kwargs: as in diffusers.
        added_cond_kwargs: as in diffusers, such as IP-Adapter's `image_embeds`.

    Returns:
        Noise of the frames `[B, C, F, H, W]` and of the references `[B, C, R, H, W]`.
    """
    num_frames = latents.shape[2]
    sample = latents if reference_latents is None else torch.cat([latents, reference_latents], dim=2)
    layout = ReferenceLayout(num_frames, sample.shape[2] - num_frames)
    noise = unet(
        sample,
        timestep,
        encoder_hidden_states=prompt_embeds.repeat_interleave(sample.shape[2], dim=0),
        cross_attention_kwargs=layout.as_kwargs(cross_attention_kwargs),
        added_cond_kwargs=added_cond_kwargs,
        return_dict=False,
    )[0]
    return noise[:, :, :num_frames], noise[:, :, num_frames:]


def guided_noise(
    unet: UNetMotionModel,
    latents: torch.Tensor,
    reference_latents: torch.Tensor,
    timestep: torch.Tensor | int,
    prompt_embeds: torch.Tensor,
    guidance_scale: torch.Tensor | None,
    **conditioning: Any,
) -> torch.Tensor:
    """The frames' noise under classifier-free guidance (eq. 6); a pure function with static shapes.

    Args:
        unet: as in `predict_noise`.
        latents: `[B, C, F, H, W]`.
        reference_latents: `[B, C, R, H, W]`; the unconditional half gets all zeros.
        timestep: a scalar.
        prompt_embeds: with guidance `[2B, L, E]`, the negative prompts first; without `[B, L, E]`.
        guidance_scale: `[B, 1, 1, 1, 1]`, or `None` for no guidance, which costs half.
        conditioning: further keyword arguments of `predict_noise`.

    Returns:
        `[B, C, F, H, W]`.
    """
    if guidance_scale is None:
        return predict_noise(unet, latents, reference_latents, timestep, prompt_embeds, **conditioning)[0]
    noise, _ = predict_noise(
        unet,
        torch.cat([latents, latents]),
        torch.cat([torch.zeros_like(reference_latents), reference_latents]),
        timestep,
        prompt_embeds,
        **conditioning,
    )
    return apply_guidance(noise, guidance_scale)


def apply_guidance(noise: torch.Tensor, guidance_scale: torch.Tensor) -> torch.Tensor:
    """Eq. 6 from predictions `[2B, …]`, the unconditional half first, and scales `[B, 1, …]`, in the noise's dtype."""
    unconditional, conditional = noise.chunk(2)
    return (unconditional + guidance_scale * (conditional - unconditional)).to(noise.dtype)


def clean_sample(
    prediction_type: str, noised: torch.Tensor, predicted: torch.Tensor, signal: torch.Tensor
) -> torch.Tensor:
    """The clean latents that a prediction means; `signal` is the noise level's ᾱ_t, to be multiplied with them."""
    if prediction_type == "sample":
        return predicted
    if prediction_type == "v_prediction":
        return signal.sqrt() * noised - (1 - signal).sqrt() * predicted
    return (noised - (1 - signal).sqrt() * predicted) / signal.sqrt()
