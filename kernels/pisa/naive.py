"""PISA attention in the paper's words: the reference of every parity test."""

import torch
from torch import Tensor


def pisa_naive(q: Tensor, k: Tensor, v: Tensor, *, num_frames: int, num_ref_tokens: int, scale: float) -> Tensor:
    """Repeat the reference for every frame, attend over [frame ‖ reference], average the reference's outputs.

    q, k, v and the result are `[B, T, H, D]` with `T = num_frames·N + num_ref_tokens`, of any floating dtype,
    float64 included. Section 4.2 of https://arxiv.org/abs/2412.19645.
    """
    q, k, v = (_join_reference(x, num_frames, num_ref_tokens) for x in (q, k, v))
    scores = torch.einsum("bfqhd,bfkhd->bfhqk", q, k) * scale
    attended = torch.einsum("bfhqk,bfkhd->bfqhd", scores.softmax(dim=-1), v)
    tokens_per_frame = attended.shape[2] - num_ref_tokens
    frames, reference = attended.split([tokens_per_frame, num_ref_tokens], dim=2)
    return torch.cat([frames.flatten(1, 2), reference.mean(dim=1)], dim=1)


def _join_reference(x: Tensor, num_frames: int, num_ref_tokens: int) -> Tensor:
    """`[B, F·N + M, H, D]` -> `[B, F, N + M, H, D]`: every frame followed by its copy of the reference."""
    frames, reference = x.split([x.shape[1] - num_ref_tokens, num_ref_tokens], dim=1)
    frames = frames.unflatten(1, (num_frames, -1))
    return torch.cat([frames, reference.unsqueeze(1).expand(-1, num_frames, -1, -1, -1)], dim=2)
