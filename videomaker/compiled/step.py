"""One denoising step and the decoder as pure tensor functions with static shapes: what a graph is made of.

Letters: B videos, C channels, F frames, R references, H heads of size D, N tokens of a frame, L text tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, UNetMotionModel

from videomaker.attention import ReferenceLayout
from videomaker.denoising import apply_guidance

from .processors import TextStates


def unet_forward(
    unet: UNetMotionModel,
    sample: torch.Tensor,
    timestep: torch.Tensor,
    text: TextStates,
    layout: ReferenceLayout,
    inner: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`UNetMotionModel.forward` for one timestep of all rows.

    Args:
        unet: with the processors of `prepare_unet`.
        sample: `[B, C, F+R, h, w]`.
        timestep: `[1]`.
        text: of `project_text`.
        layout: of the rows.
        inner: what the inner blocks gave at an earlier step; they do not run again then.

    Returns:
        The prediction `[B, C, F+R, h, w]`, and the inner blocks' output.
    """
    rows_per_video = sample.shape[2]
    conditioning = {"encoder_hidden_states": text, "cross_attention_kwargs": layout.as_kwargs()}
    shared = {"temb": unet.time_embedding(unet.time_proj(timestep).to(sample.dtype)), "num_frames": rows_per_video}
    hidden = unet.conv_in(sample.transpose(1, 2).flatten(0, 1))
    skips = [hidden]
    for block in unet.down_blocks if inner is None else unet.down_blocks[:1]:
        hidden, outputs = block(hidden, **shared, **_conditioning_of(block, conditioning))
        skips += outputs
    if inner is None:
        inner = _inner_half(unet, hidden, skips, shared, conditioning)
    block = unet.up_blocks[-1]
    outer_skips = tuple(skips[: len(block.resnets)])
    hidden = block(inner, res_hidden_states_tuple=outer_skips, **shared, **_conditioning_of(block, conditioning))
    hidden = unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))
    return hidden.unflatten(0, (-1, rows_per_video)).transpose(1, 2), inner


def _inner_half(
    unet: UNetMotionModel,
    hidden: torch.Tensor,
    skips: list[torch.Tensor],
    shared: dict[str, Any],
    conditioning: dict[str, Any],
) -> torch.Tensor:
    """The middle and all but the last of the upward blocks."""
    if unet.mid_block is not None:
        motion = shared if hasattr(unet.mid_block, "motion_modules") else {"temb": shared["temb"]}
        hidden = unet.mid_block(hidden, **conditioning, **motion)
    end = len(skips)
    for block in unet.up_blocks[:-1]:
        start = end - len(block.resnets)
        hidden = block(
            hidden,
            res_hidden_states_tuple=tuple(skips[start:end]),
            upsample_size=skips[start - 1].shape[2:],
            **shared,
            **_conditioning_of(block, conditioning),
        )
        end = start
    return hidden


def _conditioning_of(block: torch.nn.Module, conditioning: dict[str, Any]) -> dict[str, Any]:
    return conditioning if getattr(block, "has_cross_attention", False) else {}


def denoising_step(
    unet: UNetMotionModel,
    latents: torch.Tensor,
    reference: torch.Tensor,
    timestep: torch.Tensor,
    weights: torch.Tensor,
    guidance: torch.Tensor | None,
    text: TextStates,
    inner: torch.Tensor | None = None,
    keep_inner: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The guided prediction (eq. 6) and the scheduler's update, `weights[0]·latents + weights[1]·prediction`.

    Args:
        unet: as in `unet_forward`.
        latents: `[B, C, F, h, w]`.
        reference: `[B, C, R, h, w]`, clean.
        timestep: `[1]`.
        weights: `[2]` in float32; `(0, 1)` gives the prediction itself.
        guidance: `[B, 1, 1, 1, 1]`, or None for no guidance, which costs half.
        text: of `project_text`; with guidance for 2B videos, the negative prompts first.
        inner: as in `unet_forward`.
        keep_inner: whether to return the inner blocks' output, which is large, rather than None.

    Returns:
        The updated latents, contiguous, and the inner blocks' output.
    """
    num_frames = latents.shape[2]
    sample = torch.cat([latents, reference], dim=2)
    if guidance is not None:
        sample = torch.cat([torch.cat([latents, torch.zeros_like(reference)], dim=2), sample])
    layout = ReferenceLayout(num_frames, reference.shape[2])
    noise, inner = unet_forward(unet, sample, timestep, text, layout, inner)
    noise = noise[:, :, :num_frames].float()
    if guidance is not None:
        noise = apply_guidance(noise, guidance)
    updated = (weights[0] * latents.float() + weights[1] * noise).to(latents.dtype)
    return updated.contiguous(), inner if keep_inner else None


def decode_pictures(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """Pictures `[B·F, 3, H, W]` from unscaled latents `[B·F, C, h, w]`."""
    return vae.decode(latents, return_dict=False)[0]
