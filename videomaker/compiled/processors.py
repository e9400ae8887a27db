"""Attention processors of the static step: the text is projected once a video, projections are fused.

Letters: B videos, C channels, F frames, R references, H heads of size D, N tokens of a frame, L text tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from diffusers import UNetMotionModel
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0

from videomaker.attention import (
    EACH_ROW_ALONE,
    FramesOnlyCrossAttnProcessor,
    ReferenceLayout,
    fuse_pisa_projections,
    fused_projections,
    is_spatial_self_attention,
)
from videomaker.errors import InputError

TextStates = dict[str, torch.Tensor]


class TextAttnProcessor(AttnProcessor2_0):
    """Text cross-attention of all frames of a video as one sequence: they share the text, so nothing is repeated.

    Given text embeddings in place of keys and values, it does what the processor that it replaced does.
    """

    def __init__(self, name: str, replaced: AttnProcessor | AttnProcessor2_0):
        super().__init__()
        self.name = name
        self.replaced = replaced

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | TextStates | None = None,
        attention_mask: torch.Tensor | None = None,
        reference_layout: ReferenceLayout = EACH_ROW_ALONE,
        **kwargs,
    ) -> torch.Tensor:
        """Maps hidden states `[B·(F+R), N, C]` to the same shape; the text is that of `project_text`."""
        frames_only = isinstance(self.replaced, FramesOnlyCrossAttnProcessor)
        if not isinstance(encoder_hidden_states, dict):
            layout = {"reference_layout": reference_layout} if frames_only else {}
            return self.replaced(
                attn, hidden_states, encoder_hidden_states, attention_mask=attention_mask, **layout, **kwargs
            )
        key, value = encoder_hidden_states[self.name]  # [B, H, L, D] each
        rows = hidden_states.unflatten(0, (key.shape[0], -1))
        frames = rows[:, : reference_layout.num_frames] if frames_only else rows
        query = attn.to_q(frames.flatten(1, 2)).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        attended = functional.scaled_dot_product_attention(query, key, value, scale=attn.scale)
        attended = attn.to_out[1](attn.to_out[0](attended.transpose(1, 2).flatten(2))).view_as(frames)
        if frames_only:
            attended = torch.cat([attended, rows[:, reference_layout.num_frames :]], dim=1)
        return attended.flatten(0, 1)


class FusedSelfAttnProcessor(AttnProcessor2_0):
    """Self-attention of the motion modules over the frames of one pixel, with one product for query, key and value."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """Maps hidden states `[B·N, F+R, C]` to the same shape."""
        if encoder_hidden_states is not None or attention_mask is not None:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, **kwargs)
        query, key, value = (x.transpose(1, 2) for x in fused_projections(attn, hidden_states))
        attended = functional.scaled_dot_product_attention(query, key, value, scale=attn.scale)
        return attn.to_out[1](attn.to_out[0](attended.transpose(1, 2).flatten(2)))


def prepare_unet(unet: UNetMotionModel) -> None:
    """Gives `unet` the processors of the static step; eager passes keep their numbers. Safe to call again.

    Raises:
        InputError: the UNet has other attention than ours and diffusers' own, such as an IP-Adapter's.
    """
    fuse_pisa_projections(unet)
    for name, attn in _attention_layers(unet):
        ready = isinstance(attn.processor, (TextAttnProcessor, FusedSelfAttnProcessor))
        if ready or is_spatial_self_attention(name):
            continue
        if not isinstance(attn.processor, (AttnProcessor, AttnProcessor2_0)):
            kind = type(attn.processor).__name__
            raise InputError(
                f"{kind} cannot be compiled; unload adapters, or call pipe.unet.set_default_attn_processor(), before"
            )
        in_motion = "motion_modules" in name.split(".")
        attn.set_processor(FusedSelfAttnProcessor() if in_motion else TextAttnProcessor(name, attn.processor))


def project_text(unet: UNetMotionModel, text: torch.Tensor) -> TextStates:
    """Keys and values of all text cross-attentions, `[2, B, H, L, D]` each, from embeddings `[B, L, E]`."""
    return {
        name: torch.stack([attn.to_k(text), attn.to_v(text)]).unflatten(-1, (attn.heads, -1)).transpose(2, 3)
        for name, attn in _attention_layers(unet)
        if isinstance(attn.processor, TextAttnProcessor)
    }


def _attention_layers(unet: UNetMotionModel) -> list[tuple[str, Attention]]:
    return [(name, module) for name, module in unet.named_modules() if isinstance(module, Attention)]
