"""The Triton backend as a PyTorch operator: fake tensors, autograd, vmap."""

import os
from typing import Any

import torch
import triton
from torch import Tensor

from .._ops import add_op_namespace_prefix
from ..transforms import differentiable, differentiable_once, gradient_memory, register_batching
from .launch import Problem, empty_outputs, run_backward_key, run_backward_query, run_forward, run_row_statistics

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
INTERPRETED = triton.knobs.runtime.interpret  # the kernels run on the CPU: Triton decides it where they are defined


def pisa_triton(q: Tensor, k: Tensor, v: Tensor, num_frames: int, num_ref_tokens: int, scale: float) -> Tensor:
    """PISA attention by the fused kernels; see `pisa_attention` for the arguments, which are validated already.

    `scale` is positive: the kernels take the maximum before they scale. The second derivative is not implemented. With
    VIDEOMAKER_AUTOTUNE=1 in the environment, the first call for a shape family tunes the kernels (minutes).
    """
    dtype = q.dtype
    if INTERPRETED and dtype == torch.bfloat16:  # Triton's interpreter cannot multiply bfloat16 matrices
        q, k, v = q.float(), k.float(), v.float()
    if os.environ.get("VIDEOMAKER_AUTOTUNE") == "1" and not torch.compiler.is_compiling():
        from .autotune import autotune_once

        autotune_once(pisa_triton, q, k, v, num_frames, num_ref_tokens, scale)
    save = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    out = _attend(q, k, v, num_frames, num_ref_tokens, scale, save)[0]
    return out if out.dtype == dtype else out.to(dtype)


def triton_unavailable_reason(q: Tensor) -> str | None:
    """Why the kernels cannot run on tensors like `q`; None if they can."""
    if q.dtype not in DTYPES:
        return f"its kernels take float16, bfloat16 or float32, not {q.dtype}"
    if INTERPRETED:
        is_late = isinstance(triton.language.cdiv, triton.runtime.JITFunction)
        return "TRITON_INTERPRET=1 was set after triton was imported: set it before" if is_late else None
    if q.device.type != "cuda":
        return f"the tensors are on {q.device.type}, it needs a GPU (or TRITON_INTERPRET=1)"
    if torch.version.hip is None and torch.cuda.get_device_capability(q.device) < (8, 0):
        return f"{torch.cuda.get_device_name(q.device)} is older than compute capability 8.0"
    return None


@torch.library.custom_op(add_op_namespace_prefix("pisa_forward"), mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, num_frames: int, num_ref_tokens: int, scale: float, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, and unless `save` is False the reference's outputs per frame and the log-sum-exp of all rows."""
    with torch.cuda.device_of(q):
        return run_forward(Problem.of_pisa(q, k, v, num_frames, num_ref_tokens, scale), save)


@_forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, num_frames: int, num_ref_tokens: int, scale: float, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return empty_outputs(q, num_frames, num_ref_tokens, ref_queries=True, save=save)


@torch.library.custom_op(add_op_namespace_prefix("pisa_backward"), mutates_args=())
def _backward(
    out_gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, reference_outputs: Tensor, lse: Tensor,
    num_frames: int, num_ref_tokens: int, scale: float, needs_query: bool = True, needs_key: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of q, and of k and v; empty where not needed."""
    problem = Problem.of_pisa(q, k, v, num_frames, num_ref_tokens, scale)
    out_gradient = out_gradient.contiguous()
    with torch.cuda.device_of(q):
        statistics = run_row_statistics(problem, out, out_gradient, reference_outputs, lse)
        gradient = run_backward_query(problem, out_gradient, statistics) if needs_query else gradient_memory(q, False)
        if needs_key:
            return gradient, *run_backward_key(problem, out_gradient, statistics)[:2]
    return gradient, gradient_memory(k, False), gradient_memory(v, False)


@_backward.register_fake
def _(
    out_gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, reference_outputs: Tensor, lse: Tensor,
    num_frames: int, num_ref_tokens: int, scale: float, needs_query: bool = True, needs_key: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return gradient_memory(q, needs_query), gradient_memory(k, needs_key), gradient_memory(v, needs_key)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    q, k, v, *ctx.options, save = inputs
    out, reference_outputs, lse = output
    ctx.mark_non_differentiable(reference_outputs, lse)
    ctx.set_materialize_grads(False)
    if save:
        ctx.save_for_backward(q, k, v, out, reference_outputs, lse)


def _forward_gradients(ctx: Any, out_gradient: Tensor | None, *_: object) -> tuple[Tensor | None, ...]:
    if out_gradient is None:
        return (None,) * 7
    needs_query, *needs_key = ctx.needs_input_grad[:3]
    gradients = _attend_backward(out_gradient, *ctx.saved_tensors, *ctx.options, needs_query, any(needs_key))
    gradients = (x if needed else None for x, needed in zip(gradients, ctx.needs_input_grad, strict=False))
    return *gradients, None, None, None, None


_attend_backward = differentiable_once(_backward, "PISA attention's Triton backend")
_attend = differentiable(_forward, _setup_context, _forward_gradients)
register_batching(_forward)
register_batching(_backward)
