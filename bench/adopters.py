"""Other models' attention over a reference: the usual repeated form against videomaker.attention's, a layer each.

    python bench/attn.py --adopters                  on a GPU: SD 1.5 and SDXL layers at full size
    python bench/attn.py --adopters --device cpu     small ones

The usual forms are what public code does: the bank, or the first image, repeated for every frame or image and
concatenated to its own tokens. Both forms are gated against float64 before they are timed.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as functional
from diffusers.models.attention_processor import Attention
from torch import Tensor

from videomaker.attention import (
    SharedStyle,
)

NAME = "layer"  # of the bank's entry


def attend(attn: Attention, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """torch's attention of projected rows `[rows, tokens, C]`, and the layer's output projection."""
    q, k, v = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (query, key, value))
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=attn.scale)
    return attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))


class UsualBankProcessor:
    """A ReferenceNet's read mode as it is usually written, on the keywords of `ReferenceBank`."""

    def __init__(self, name: str = NAME):
        self.name = name

    def __call__(
        self, attn: Attention, hidden_states: Tensor, *args: object, reference_bank: Any = None, **kwargs: object
    ) -> Tensor:
        """Repeats the bank for every frame; videos without it are computed once more, alone."""
        x = hidden_states
        if reference_bank is None:
            return attend(attn, attn.to_q(x), attn.to_k(x), attn.to_v(x))
        frames, bank = reference_bank.num_frames, reference_bank.states[self.name]
        bank = bank.repeat(len(x) // frames // len(bank), 1, 1)
        repeated = bank.unsqueeze(1).repeat(1, frames, 1, 1).flatten(0, 1)  # [B·F, M, C]
        joined = torch.cat([x, repeated], dim=1)
        out = attend(attn, attn.to_q(x), attn.to_k(joined), attn.to_v(joined))
        if reference_bank.use_reference is None:
            return out
        alone = ~reference_bank.use_reference.repeat_interleave(frames)
        own = x[alone]
        out = out.clone()
        out[alone] = attend(attn, attn.to_q(own), attn.to_k(own), attn.to_v(own))
        return out


class UsualStyleProcessor:
    """StyleAligned's shared attention as it is usually written, on the keywords of `SharedStyle`."""

    def __init__(self, score_shift: float = 0.0):
        self.score_shift = score_shift

    def __call__(
        self, attn: Attention, hidden_states: Tensor, *args: object, shared_style: SharedStyle, **kwargs: object
    ) -> Tensor:
        """Normalises queries and keys to the first image's statistics, repeats its keys and values for every image."""
        images, tokens = shared_style.num_images, hidden_states.shape[1]
        q, k, v = (layer(hidden_states) for layer in (attn.to_q, attn.to_k, attn.to_v))
        q, k = (self._normalised(x, images) for x in (q, k))
        k, v = (torch.cat([x, self._first(x, images)], dim=1) for x in (k, v))
        shift = torch.zeros(2 * tokens, dtype=q.dtype, device=q.device)
        shift[tokens:] = self.score_shift
        return attend(attn, q, k, v, shift.expand(tokens, -1) if self.score_shift else None)

    def _first(self, x: Tensor, images: int) -> Tensor:
        grouped = x.unflatten(0, (-1, images))
        return grouped[:, :1].expand_as(grouped).flatten(0, 1)

    def _normalised(self, x: Tensor, images: int) -> Tensor:
        mean, deviation = x.mean(dim=1, keepdim=True), (x.var(dim=1, keepdim=True) + 1e-5).sqrt()
        return (x - mean) / deviation * self._first(deviation, images) + self._first(mean, images)


class UsualPlainProcessor:
    """Self-attention by torch."""

    def __call__(
        self, attn: Attention, hidden_states: Tensor, *args: object, reference_bank: object = None, **kwargs: object
    ) -> Tensor:
        """Every row for itself, whatever the bank holds."""
        return attend(attn, attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states))
