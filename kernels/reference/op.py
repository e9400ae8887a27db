"""The Triton backend of reference attention as a PyTorch operator: PISA's kernels without queries of the reference."""

from typing import Any

import torch
from torch import Tensor

from .._ops import add_op_namespace_prefix
from ..pisa.launch import Problem, empty_outputs, run_backward_key, run_backward_query, run_forward, run_row_statistics
from ..pisa.op import INTERPRETED
from ..transforms import differentiable, differentiable_once, gradient_memory
from .batching import register_reference_batching


def reference_triton(
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
    """`reference_attention` by the fused kernels; arguments as of `reference_naive`, bias fp32."""
    dtype = q.dtype
    inputs: tuple[Tensor, ...] = (q, k, v, k_ref, v_ref)
    if INTERPRETED and dtype == torch.bfloat16:  # Triton's interpreter cannot multiply bfloat16 matrices
        inputs = tuple(x.float() for x in inputs)
    save = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    out = _attend(*inputs, bias, num_frames, scale, save)[0]
    return out if out.dtype == dtype else out.to(dtype)


@torch.library.custom_op(add_op_namespace_prefix("reference_forward"), mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, k_ref: Tensor, v_ref: Tensor, bias: Tensor | None,
    num_frames: int, scale: float, save: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The output and, when `save`, the log-sum-exp of its rows `[B, H, F·N]`."""
    with torch.cuda.device_of(q):
        out, _, lse = run_forward(_problem(q, k, v, k_ref, v_ref, bias, num_frames, scale), save)
    return out, lse


@_forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, k_ref: Tensor, v_ref: Tensor, bias: Tensor | None,
    num_frames: int, scale: float, save: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return empty_outputs(q, num_frames, 0, ref_queries=False, save=save)[::2]


@torch.library.custom_op(add_op_namespace_prefix("reference_backward"), mutates_args=())
def _backward(
    out_gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, k_ref: Tensor, v_ref: Tensor, bias: Tensor | None,
    out: Tensor, lse: Tensor, num_frames: int, scale: float, needs_query: bool, needs_own: bool, needs_reference: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of q, of k and v, of k_ref and v_ref; empty where not needed."""
    problem = _problem(q, k, v, k_ref, v_ref, bias, num_frames, scale)
    out_gradient = out_gradient.contiguous()
    query, keys = gradient_memory(q, False), [gradient_memory(x, False) for x in (k, v, k_ref, v_ref)]
    with torch.cuda.device_of(q):
        statistics = run_row_statistics(problem, out, out_gradient, out, lse)
        if needs_query:
            query = run_backward_query(problem, out_gradient, statistics)
        if needs_own or needs_reference:
            found = run_backward_key(problem, out_gradient, statistics, own=needs_own, reference=needs_reference)
            needed = (needs_own, needs_own, needs_reference, needs_reference)
            keys = [x if is_needed else empty for x, empty, is_needed in zip(found, keys, needed, strict=True)]
    k_gradient, v_gradient, k_ref_gradient, v_ref_gradient = keys
    return query, k_gradient, v_gradient, k_ref_gradient, v_ref_gradient


@_backward.register_fake
def _(
    out_gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, k_ref: Tensor, v_ref: Tensor, bias: Tensor | None,
    out: Tensor, lse: Tensor, num_frames: int, scale: float, needs_query: bool, needs_own: bool, needs_reference: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    own = gradient_memory(k, needs_own), gradient_memory(v, needs_own)
    reference = gradient_memory(k_ref, needs_reference), gradient_memory(v_ref, needs_reference)
    return gradient_memory(q, needs_query), *own, *reference


def _problem(
    q: Tensor, k: Tensor, v: Tensor, k_ref: Tensor, v_ref: Tensor, bias: Tensor | None, num_frames: int, scale: float
) -> Problem:
    k, v = (x if x.stride(1) >= x.shape[3] else x.contiguous() for x in (k, v))  # tokens that share memory
    k_ref, v_ref = (_with_token_stride(x, own.stride(1)) for x, own in ((k_ref, k), (v_ref, v)))
    bias = None if bias is None else bias.contiguous()
    return Problem(q, k, v, k_ref, v_ref, num_frames, scale, ref_bias=bias)


def _with_token_stride(x: Tensor, stride: int) -> Tensor:
    """`x`, or where its tokens lie otherwise than the frames' a copy that is `stride` from token to token.

    The kernels hold that stride as a constant; the reference is one frame large, so the copy is small.
    """
    if x.stride(1) == stride or x.shape[1] < 2:
        return x
    _, tokens, heads, head_dim = x.shape
    if stride >= heads * head_dim:
        strides = (tokens * stride, stride, head_dim, 1)
    else:  # heads before tokens
        strides = (heads * tokens * stride, stride, tokens * stride, 1)
    return x.new_empty_strided(x.shape, strides).copy_(x)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    *tensors, bias, ctx.num_frames, ctx.scale, save = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.set_materialize_grads(False)
    if save:
        ctx.save_for_backward(*tensors, bias, out, lse)


def _gradients(ctx: Any, out_gradient: Tensor | None, *_: object) -> tuple[Tensor | None, ...]:
    if out_gradient is None:
        return (None,) * 9
    query, k, v, k_ref, v_ref = ctx.needs_input_grad[:5]
    gradients = _attend_backward(
        out_gradient, *ctx.saved_tensors, ctx.num_frames, ctx.scale, query, k or v, k_ref or v_ref
    )
    return *(x if needed else None for x, needed in zip(gradients, ctx.needs_input_grad, strict=False)), *[None] * 4


_attend_backward = differentiable_once(_backward, "reference attention's Triton backend")
_attend = differentiable(_forward, _setup_context, _gradients)
register_reference_batching(_forward, first=0)
register_reference_batching(_backward, first=1)
