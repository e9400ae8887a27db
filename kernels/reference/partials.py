"""Backend "sdpa" of reference attention: the frames' part of PISA's partials (../pisa/partials.py), and no more."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..namespace import operator_name
from ..pisa.partials import attend_frames, attend_frames_backward, choose, empty_outputs, groups, no_second_derivative
from ..transforms import differentiable
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


@torch.library.custom_op(operator_name("reference_partials"), mutates_args=())
def partials_forward(
    q: Tensor, k: Tensor, v: Tensor, k_ref: Tensor, v_ref: Tensor, bias: Tensor | None,
    num_frames: int, scale: float, kernel: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Output `[B, F·N, H, D]`, and the log-sum-exp of its rows `[B, F, H, N]`."""
    attend = choose(kernel, q, k, v)
    out, lse = empty_outputs(q, num_frames, 0)
    for video, frames, reference, video_bias in _videos((q, k, v, out), (k_ref, v_ref), bias, num_frames):
        for group in groups(frames[0], reference[0].shape[2]):
            q_f, k_f, v_f, out_f = (x[group] for x in frames)
            merged, lse[video, group] = attend_frames(attend, q_f, k_f, v_f, *reference, scale, video_bias)
            out_f.copy_(merged)
    return out, lse


@partials_forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, k_ref: Tensor, v_ref: Tensor, bias: Tensor | None,
    num_frames: int, scale: float, kernel: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return empty_outputs(q, num_frames, 0)


@torch.library.custom_op(operator_name("reference_partials_backward"), mutates_args=())
def partials_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, k_ref: Tensor, v_ref: Tensor, bias: Tensor | None,
    out: Tensor, lse: Tensor, scale: float, kernel: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v, k_ref and v_ref; those of a shared reference are summed over the batch."""
    attend = choose(kernel, q, k, v)
    grads = [x.new_empty(x.shape) for x in (q, k, v)]
    ref_grads = [torch.zeros_like(x, dtype=lse.dtype, memory_format=torch.contiguous_format) for x in (k_ref, v_ref)]
    tensors = (grad_out.contiguous(), q, k, v, out, *grads)
    for video, frames, reference, video_bias in _videos(tensors, (k_ref, v_ref), bias, lse.shape[1]):
        shared = [x[video % len(x)].transpose(0, 1).unsqueeze(0) for x in ref_grads]
        for group in groups(frames[0], reference[0].shape[2]):
            grad, q_f, k_f, v_f, out_f, dq, dk, dv = (x[group] for x in frames)
            terms = attend_frames_backward(
                attend, grad, q_f, k_f, v_f, out_f, lse[video, group], *reference, scale, video_bias
            )
            torch.add(terms[0], terms[1], out=dq)
            dk.copy_(terms[2])
            dv.copy_(terms[3])
            for total, term in zip(shared, terms[4:], strict=True):
                total[:, :, : term.shape[2]] += term
    (q_grad, k_grad, v_grad), (k_ref_grad, v_ref_grad) = grads, ref_grads
    return q_grad, k_grad, v_grad, k_ref_grad.to(q.dtype), v_ref_grad.to(q.dtype)


@partials_backward.register_fake
def _(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, k_ref: Tensor, v_ref: Tensor, bias: Tensor | None,
    out: Tensor, lse: Tensor, scale: float, kernel: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    empty = [x.new_empty(x.shape) for x in (q, k, v, k_ref, v_ref)]
    return empty[0], empty[1], empty[2], empty[3], empty[4]


def _videos(
    tensors: tuple[Tensor, ...], reference: tuple[Tensor, Tensor], bias: Tensor | None, num_frames: int
) -> Iterator[tuple[int, list[Tensor], tuple[Tensor, Tensor], Tensor | None]]:
    """For each video: its number, frames `[F, H, N, D]`, reference `[1, H, M, D]` and bias `[H]`.

    On a CPU a reference that every head leaves out comes without tokens; elsewhere, where looking would stop the
    device, with zeros and the weight zero.
    """
    for video in range(len(tensors[0])):
        frames = [x[video].unflatten(0, (num_frames, -1)).transpose(1, 2) for x in tensors]
        k_ref, v_ref = (x[video % len(x)].transpose(0, 1).unsqueeze(0) for x in reference)
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
    gradients = _attend_backward(grad_out, *ctx.saved_tensors, ctx.scale, ctx.kernel)
    return *(x if needed else None for x, needed in zip(gradients, ctx.needs_input_grad, strict=False)), *[None] * 4


_attend_backward = differentiable(partials_backward, lambda ctx, inputs, output: None, no_second_derivative)
_attend = differentiable(partials_forward, _setup_context, _gradients)
register_reference_batching(partials_forward, first=0)
register_reference_batching(partials_backward, first=1)
