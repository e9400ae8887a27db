"""Plain self-attention of SD 1.5, SDXL and AnimateDiff by this project's kernels: no reference, other head widths."""

from __future__ import annotations

import torch
from diffusers.models.attention_processor import Attention

from videomaker.kernels import reference_attention

from .unet import check_backend, heads_of, install_processors, project_out, refuse_inputs


class PlainAttnProcessor:
    """Self-attention of every row (image or frame) for itself: what AttnProcessor2_0 computes, without a reference.

    The kernels take heads of 40, 80 and 160 as they are, where the libraries' pad them to 64, 128 and 256.
    """

    def __init__(self, backend: str = "auto"):
        self.backend = backend

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Maps hidden states `[rows, N, C]` to the same shape."""
        refuse_inputs(encoder_hidden_states, attention_mask)
        query, key, value = heads_of(attn, hidden_states)
        attended = reference_attention(
            query, key, value, key[:1, :0], value[:1, :0], num_frames=1, scale=attn.scale, backend=self.backend
        )
        return project_out(attn, attended, len(hidden_states))


def install_attention(unet: torch.nn.Module, *, backend: str = "auto") -> list[str]:
    """Computes every spatial self-attention of `unet` by this project's kernels, without any reference.

    Args:
        unet: a UNet2DConditionModel (SD 1.5, SDXL) or a UNetMotionModel (AnimateDiff).
        backend: of `videomaker.kernels.reference_attention`.

    Returns:
        The names of the changed `attn1` layers.

    Raises:
        InputError: `unet` has no such layers, or ones with parts that these processors do not compute; no such backend.
    """
    check_backend(backend)
    return install_processors(unet, lambda name: PlainAttnProcessor(backend))
