"""Reference attention as it is usually written: the stick that the other backends are measured with."""

import torch
from torch import Tensor


def reference_naive(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_ref: Tensor,
    v_ref: Tensor,
    bias: Tensor | None = None,
    *,
    num_frames: int,
    scale: float,
) -> Tensor:
    """Scores of every frame over its own and the reference's keys, one softmax, one product with the values.

    q, k, v and the result are `[B, F·N, H, D]` of any floating dtype, float64 included; k_ref, v_ref
    `[B or 1, M, H, D]`. `bias` `[B, H]` is added to the reference's scores; -inf leaves the reference out.
    """
    frames = (x.unflatten(1, (num_frames, -1)) for x in (q, k, v))
    q_f, k_f, v_f = frames
    if bias is not None:
        left_out = (bias == float("-inf")).unsqueeze(1).unsqueeze(-1)  # [B, 1, H, 1]
        k_ref, v_ref = (x.masked_fill(left_out, 0) for x in (k_ref, v_ref))
    own = torch.einsum("bfqhd,bfkhd->bfhqk", q_f, k_f) * scale
    shared = torch.einsum("bfqhd,bkhd->bfhqk", q_f, k_ref.expand(len(q), -1, -1, -1)) * scale
    if bias is not None:
        shared = shared + bias[:, None, :, None, None]
    own_weights, shared_weights = (
        torch.cat([own, shared], dim=-1).softmax(dim=-1).split([own.shape[-1], shared.shape[-1]], dim=-1)
    )
    out = torch.einsum("bfhqk,bfkhd->bfqhd", own_weights, v_f)
    out = out + torch.einsum("bfhqk,bkhd->bfqhd", shared_weights, v_ref.expand(len(q), -1, -1, -1))
    return out.flatten(1, 2)
