"""One style for a batch of images: all attend to the first as well (StyleAligned, arXiv 2312.02133)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from diffusers.models.attention_processor import Attention

from videomaker.errors import InputError
from videomaker.kernels import reference_attention

from .unet import (
    STYLE,
    check_backend,
    check_score_shift,
    heads_of,
    install_processors,
    project_out,
    refuse_inputs,
)


class SharedStyle(NamedTuple):
    """How the UNet's rows are laid out: groups of `num_images`, whose first image gives the style.

    Guidance's halves are two groups. It travels with the call, as `cross_attention_kwargs=style.as_kwargs()`; without
    it every image stands alone.
    """

    num_images: int

    def as_kwargs(self, others: dict[str, Any] | None = None) -> dict[str, Any]:
        """`cross_attention_kwargs` that carry this layout, beside `others`."""
        return {**(others or {}), STYLE: self}


class StyleAlignedAttnProcessor:
    """Self-attention of every image over [own ‖ first image of its group], queries and keys brought to its statistics.

    The first image's keys and values are read where they lie. It attends to itself twice over, which is to itself:
    with whatever shift, a weighted mean of equal values does not change.
    """

    def __init__(
        self,
        *,
        score_shift: float = 0.0,
        adain_queries: bool = True,
        adain_keys: bool = True,
        adain_values: bool = False,
        backend: str = "auto",
    ):
        check_score_shift("score_shift", score_shift)
        self.score_shift = score_shift
        self.adain = (adain_queries, adain_keys, adain_values)
        self.backend = backend

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        shared_style: SharedStyle | None = None,
    ) -> torch.Tensor:
        """Maps hidden states `[groups·num_images, N, C]` to the same shape."""
        refuse_inputs(encoder_hidden_states, attention_mask)
        rows, tokens, _ = hidden_states.shape
        num_images = 1 if shared_style is None else shared_style.num_images
        if num_images < 1 or rows % num_images:
            raise InputError(f"num_images must divide the {rows} rows of the UNet's batch, got {num_images}")
        groups = [x.unflatten(0, (-1, num_images)) for x in heads_of(attn, hidden_states)]  # [G, I, N, H, D]
        if num_images > 1:
            groups = [adain(x) if chosen else x for x, chosen in zip(groups, self.adain, strict=True)]
        query, key, value = (x.flatten(1, 2) for x in groups)
        shared = tokens if num_images > 1 else 0
        attended = reference_attention(
            query,
            key,
            value,
            key[:, :shared],
            value[:, :shared],
            num_frames=num_images,
            reference_bias=self.score_shift or None,
            scale=attn.scale,
            backend=self.backend,
        )
        return project_out(attn, attended, rows)


def adain(x: torch.Tensor, epsilon: float = 1e-5) -> torch.Tensor:
    """`[G, I, N, H, D]` with the mean and deviation over the tokens of each group's first image (arXiv 1703.06868)."""
    variance, mean = torch.var_mean(x, dim=2, keepdim=True)
    deviation = (variance + epsilon).sqrt()
    return (x - mean) / deviation * deviation[:, :1] + mean[:, :1]


def install_style_aligned(
    unet: torch.nn.Module,
    *,
    score_shift: float = 0.0,
    adain_queries: bool = True,
    adain_keys: bool = True,
    adain_values: bool = False,
    backend: str = "auto",
) -> list[str]:
    """Puts `StyleAlignedAttnProcessor`s on every spatial self-attention of `unet`.

    Args:
        unet: a UNet2DConditionModel, SDXL's as a rule.
        score_shift: added to the scores of the first image; `log(2)` makes it count twice.
        adain_queries, adain_keys, adain_values: what is brought to the first image's statistics.
        backend: of `videomaker.kernels.reference_attention`.

    Returns:
        The names of the changed `attn1` layers.

    Raises:
        InputError: `unet` has no such layers, or ones with parts that these processors do not compute; `score_shift`
            is NaN or infinite; there is no such backend.
    """
    check_backend(backend)
    options = {"adain_queries": adain_queries, "adain_keys": adain_keys, "adain_values": adain_values}
    return install_processors(
        unet, lambda name: StyleAlignedAttnProcessor(score_shift=score_shift, backend=backend, **options)
    )
