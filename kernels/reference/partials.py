"""Backend "sdpa" of reference attention: the frames' part of PISA's partials (../pisa/partials.py), and no more."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .._ops import add_op_namespace_prefix
from ..pisa.partials import (
    attend_frames,
    attend_reference_backward,
    choose,
    empty_outputs,
    groups,
)
from ..transforms import differentiable, differentiable_once, gradient_memory
from .batching import register_reference_batching


def reference_partials(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_ref: Tensor,
    v_ref: Tensor,
    bias: Tensor | None = None,
    *,
    num_frames: int,
    scale: float,
    kernel: str = "auto",
) -> Tensor:
    """`reference_attention` on any device, with no copy of the reference; arguments as of `reference_naive`."""
    return _attend(q, k, v, k_ref, v_ref, bias, num_frames, scale, kernel)[0]


@torch.library.custom_op(add_op_namespace_prefix("reference_partials"), mutates_args=())
def partials_forward(
    q: Tensor, k: Tensor, v: Tensor, k_ref: Tensor, v_ref: Tensor, bias: Tensor | None,
    num_frames: int, scale: float, kernel: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Output `[B, F·N, H, D]`, and the log-sum-exp of its rows `[B, F, H, N]`."""
    attend = choose(kernel, q, k, v)
    out, lse = empty_outputs(q, num_frames, 0)
    for video, frames, reference, video_bias in _videos((q, k, v, out), (k_ref, v_ref), bias, num_frames):
        q_f, k_f, v_f, out_f = frames
        attend_frames(attend, q_f, k_f, v_f, *reference, scale, video_bias, out=out_f, lse=lse[video])
    return out, lse


@partials_forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, k_ref: Tensor, v_ref: Tensor, bias: Tensor | None,
    num_frames: int, scale: float, kernel: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return empty_outputs(q, num_frames, 0)


@torch.library.custom_op(add_op_namespace_prefix("reference_partials_backward"), mutates_args=())
def partials_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, k_ref: Tensor, v_ref: Tensor, bias: Tensor | None,
    out: Tensor, lse: Tensor, scale: float, kernel: str, needs_query: bool, needs_own: bool, needs_reference: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, of k and v, of k_ref and v_ref (summed over the batch that shares them); empty where not needed.

    torch's kernels give an attention's three gradients at once: that of the frames to themselves is left out when none
    of q, k, v is needed, that to the reference when neither q nor the reference is.
    """
    attend, num_frames = choose(kernel, q, k, v), lse.shape[1]
    needed = (needs_query, needs_own, needs_own, needs_reference, needs_reference)
    dtypes = (q.dtype, q.dtype, q.dtype, lse.dtype, lse.dtype)
    grads = [x.new_zeros(x.shape, dtype=dtype) if is_needed else None
             for x, dtype, is_needed in zip((q, k, v, k_ref, v_ref), dtypes, needed, strict=True)]  # fmt: skip
    tensors = (grad_out.contiguous(), q, k, v, out)
    for video, frames, reference, video_bias in _videos(tensors, (k_ref, v_ref), bias, num_frames):
        own = [None if x is None else _frames(x[video], num_frames) for x in grads[:3]]
        shared = [None if x is None else _reference(x, video) for x in grads[3:]]
        for group in groups(frames[0], reference[0].shape[2]):
            grad_f, q_f, k_f, v_f, out_f = (x[group] for x in frames)
            dq, dk, dv = (None if x is None else x[group] for x in own)
            rows = (out_f, lse[video, group])
            if needs_query or needs_own:
                _add((dq, dk, dv), attend.backward(grad_f, q_f, k_f, v_f, *rows, scale))
            if needs_query or needs_reference:
                terms = attend_reference_backward(attend, grad_f, q_f, *rows, *reference, scale, video_bias)
                _add((dq, *shared), terms)
    dq, dk, dv, dk_ref, dv_ref = (
        gradient_memory(x, False) if grad is None else grad.to(q.dtype)
        for x, grad in zip((q, k, v, k_ref, v_ref), grads, strict=True)
    )
    return dq, dk, dv, dk_ref, dv_ref


def _add(totals: tuple[Tensor | None, ...], terms: tuple[Tensor, ...]) -> None:
    """Adds the terms of a gradient `[…, …, tokens, D]` in place; a reference that is left out has no tokens."""
    for total, term in zip(totals, terms, strict=True):
        if total is not None:
            total[:, :, : term.shape[2]] += term


@partials_backward.register_fake
def _(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, k_ref: Tensor, v_ref: Tensor, bias: Tensor | None,
    out: Tensor, lse: Tensor, scale: float, kernel: str, needs_query: bool, needs_own: bool, needs_reference: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    own = gradient_memory(k, needs_own), gradient_memory(v, needs_own)
    reference = gradient_memory(k_ref, needs_reference), gradient_memory(v_ref, needs_reference)
    return gradient_memory(q, needs_query), *own, *reference


def _frames(x: Tensor, num_frames: int) -> Tensor:
    """One video's `[F·N, H, D]` as `[F, H, N, D]`."""
    return x.unflatten(0, (num_frames, -1)).transpose(1, 2)


def _reference(x: Tensor, video: int) -> Tensor:
    """A video's reference `[1, H, M, D]`, its own or the one that all share."""
    return x[video % len(x)].transpose(0, 1).unsqueeze(0)


def _videos(
    tensors: tuple[Tensor, ...], reference: tuple[Tensor, Tensor], bias: Tensor | None, num_frames: int
) -> Iterator[tuple[int, list[Tensor], tuple[Tensor, Tensor], Tensor | None]]:
    """For each video: its number, frames `[F, H, N, D]`, reference `[1, H, M, D]` and bias `[H]`.

    On a CPU a reference that every head leaves out comes without tokens; elsewhere, where looking would stop the
    device, with zeros and the weight zero.
    """
    for video in range(len(tensors[0])):
        frames = [_frames(x[video], num_frames) for x in tensors]
        k_ref, v_ref = (_reference(x, video) for x in reference)
        if bias is None:
            yield video, frames, (k_ref, v_ref), None
            continue
        left_out = bias[video] == float("-inf")  # [H]
        if bias.device.type == "cpu" and left_out.all():
            k_ref, v_ref = (x[:, :, :0] for x in (k_ref, v_ref))
        elif bias.device.type != "cpu" or left_out.any():
            k_ref, v_ref = (x.masked_fill(left_out[:, None, None], 0) for x in (k_ref, v_ref))
        yield video, frames, (k_ref, v_ref), bias[video]


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    *tensors, bias, _, ctx.scale, ctx.kernel = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, bias, out, lse)


def _gradients(ctx: Any, grad_out: Tensor | None, *_: object) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return (None,) * 9
    query, k, v, k_ref, v_ref = ctx.needs_input_grad[:5]
    gradients = _attend_backward(grad_out, *ctx.saved_tensors, ctx.scale, ctx.kernel, query, k or v, k_ref or v_ref)
    return *(x if needed else None for x, needed in zip(gradients, ctx.needs_input_grad, strict=False)), *[None] * 4


_attend_backward = differentiable_once(partials_backward, "the attention backend sdpa")
_attend = differentiable(partials_forward, _setup_context, _gradients)
register_reference_batching(partials_forward, first=0)
register_reference_batching(partials_backward, first=1)
