"""Launches of the kernels on the tensors of one call, and the memory that they write to."""

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..transforms import gradient_memory
from .backward import pisa_backward_key, pisa_backward_query, pisa_row_statistics
from .configs import Config
from .forward import pisa_forward
from .plans import FP32_POINTERS, Geometry, plan_backward_key, plan_backward_query, plan_forward, plan_statistics
from .primitives import sum_groups

LOG2_E = math.log2(math.e)
SUM_BLOCK = 1024


@dataclass(frozen=True)
class Problem:
    """The tensors of one call. For PISA the reference's keys and values are the last tokens of k and v."""

    q: Tensor
    k: Tensor
    v: Tensor
    k_ref: Tensor
    v_ref: Tensor
    num_frames: int
    scale: float
    ref_queries: bool = False
    ref_bias: Tensor | None = None

    @classmethod
    def of_pisa(cls, q: Tensor, k: Tensor, v: Tensor, num_frames: int, num_ref_tokens: int, scale: float) -> "Problem":
        """A call of `pisa_attention`."""
        frame_tokens = q.shape[1] - num_ref_tokens
        k_ref, v_ref = (x.narrow(1, frame_tokens, num_ref_tokens) for x in (k, v))
        return cls(q, k, v, k_ref, v_ref, num_frames, scale, ref_queries=True)

    @functools.cached_property
    def geometry(self) -> Geometry:
        """What the launches depend on besides the numbers."""
        q, k, v, k_ref, v_ref = self.q, self.k, self.v, self.k_ref, self.v_ref
        shape, num_ref_tokens = q.shape, k_ref.shape[1]
        frame_tokens = shape[1] - num_ref_tokens if self.ref_queries else shape[1]
        return Geometry(
            q.device,
            q.dtype,
            self.num_frames,
            frame_tokens // self.num_frames,
            num_ref_tokens,
            tuple(shape),
            (q.stride(), k.stride(), v.stride(), _shared_stride(k_ref), _shared_stride(v_ref)),
            k_ref.shape[0],
            self.ref_queries,
            self.ref_bias is not None,
            float32_precision() if q.dtype == torch.float32 else "ieee",
        )

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """The inputs in the kernels' order."""
        return self.q, self.k, self.v, self.k_ref, self.v_ref, self.ref_bias


def _shared_stride(reference: Tensor) -> tuple[int, ...]:
    """The strides by which every video of the batch finds its reference."""
    stride = reference.stride()
    return stride if reference.shape[0] > 1 else (0, *stride[1:])


def float32_precision() -> str:
    """What the program allows products of float32 on a GPU to be: "ieee" or "tf32", by either of PyTorch's switches.

    The older switch cannot be read any more once the newer one was used.
    """
    backends: Any = torch.backends  # the newer switches have no types
    precision = backends.cuda.matmul.fp32_precision
    precision = backends.fp32_precision if precision == "none" else precision
    return "tf32" if precision == "tf32" else "ieee"


def empty_outputs(
    q: Tensor, num_frames: int, num_ref_tokens: int, *, ref_queries: bool, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The output and, when `save`, room for the reference's outputs per frame and the log-sum-exp of all rows."""
    batch, all_tokens, num_heads, head_dim = q.shape
    num_ref_rows = num_ref_tokens if ref_queries else 0
    saved_frames = num_frames + 1 if save else 0
    saved_rows = all_tokens + num_frames * num_ref_rows if save else 0
    return (
        q.new_empty(q.shape),
        q.new_empty((batch, saved_frames, num_ref_rows, num_heads, head_dim)),
        q.new_empty((batch, num_heads, saved_rows), dtype=torch.float32),
    )


def run_forward(problem: Problem, save: bool, config: Config | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Launches the forward kernel; see `empty_outputs` for what it returns."""
    q, geometry = problem.q, problem.geometry
    plan = plan_forward(geometry, save, config)
    out, reference_outputs, lse = empty_outputs(
        q, geometry.num_frames, geometry.num_ref_tokens, ref_queries=geometry.ref_queries, save=save
    )
    partials = q.new_empty(plan.partials, dtype=torch.float32)
    pisa_forward[plan.grid](
        *problem.tensors, out, reference_outputs, lse, partials,
        *plan.integers, problem.scale * LOG2_E, **plan.constants,
    )  # fmt: skip
    if plan.is_split:
        _sum(partials, out.narrow(1, geometry.num_frames * geometry.num_tokens, geometry.num_ref_tokens))
    return out, reference_outputs, lse


def run_row_statistics(
    problem: Problem, out: Tensor, out_gradient: Tensor, reference_outputs: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor]:
    """lse' and δ' of every row, fp32 `[B, H, R]` each; see backward.py."""
    geometry = problem.geometry
    # The kernels know no strides of these, and vmap repeats a sample by a stride of 0.
    out, out_gradient, reference_outputs, lse = (x.contiguous() for x in (out, out_gradient, reference_outputs, lse))
    row_lse = torch.empty_like(lse) if geometry.ref_queries else lse
    row_delta = torch.empty_like(lse)
    grid, integers, constants = plan_statistics(geometry)
    pisa_row_statistics[grid](
        out, out_gradient, reference_outputs, lse, row_lse, row_delta, *integers, **constants
    )  # fmt: skip
    return row_lse, row_delta


def run_backward_query(
    problem: Problem, out_gradient: Tensor, statistics: tuple[Tensor, Tensor], config: Config | None = None
) -> Tensor:
    """The gradient of q."""
    q, geometry = problem.q, problem.geometry
    plan = plan_backward_query(geometry, config)
    gradient, partials = q.new_empty(q.shape), q.new_empty(plan.partials, dtype=torch.float32)
    pisa_backward_query[plan.grid](
        *problem.tensors, out_gradient, *statistics, gradient, partials,
        *plan.integers, problem.scale, problem.scale * LOG2_E, **plan.constants,
    )  # fmt: skip
    if plan.is_split:
        _sum(partials, gradient.narrow(1, geometry.num_frames * geometry.num_tokens, geometry.num_ref_tokens))
    return gradient


def run_backward_key(
    problem: Problem,
    out_gradient: Tensor,
    statistics: tuple[Tensor, Tensor],
    config: Config | None = None,
    *,
    own: bool = True,
    reference: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of k, v, k_ref and v_ref; for PISA the last two are the last tokens of the first two.

    `own` and `reference` say which are needed; the others have memory but no numbers.
    """
    k, v, geometry = problem.k, problem.v, problem.geometry
    plan = plan_backward_key(geometry, own, reference, config)
    own_gradients = gradient_memory(k), gradient_memory(v)
    if geometry.ref_queries:
        first, count = geometry.num_frames * geometry.num_tokens, geometry.num_ref_tokens
        ref_gradients = own_gradients[0].narrow(1, first, count), own_gradients[1].narrow(1, first, count)
    else:
        ref_gradients = gradient_memory(problem.k_ref), gradient_memory(problem.v_ref)
    partials = [k.new_empty(plan.partials, dtype=torch.float32) for _ in ref_gradients]
    *integers, num_reference_programs, num_frames, num_tokens, num_ref_tokens, num_groups = plan.integers
    pisa_backward_key[plan.grid](
        *problem.tensors, out_gradient, *statistics, *own_gradients, *ref_gradients, *partials,
        *integers, ref_gradients[0].stride(0),
        num_reference_programs, num_frames, num_tokens, num_ref_tokens, num_groups,
        problem.scale, problem.scale * LOG2_E, **plan.constants,
    )  # fmt: skip
    if plan.is_split:
        for partial, gradient in zip(partials, ref_gradients, strict=True):
            _sum(partial, gradient)
    return *own_gradients, *ref_gradients


def warm_up(geometry: Geometry, kernel: str, config: Config | None = None) -> Any:
    """Compiles one of the attention kernels for a GPU without a launch; what Triton's `warmup` returns."""
    if kernel.startswith("forward"):
        function, plan = pisa_forward, plan_forward(geometry, kernel == "forward_training", config)
    elif kernel == "backward_query":
        function, plan = pisa_backward_query, plan_backward_query(geometry, config)
    else:
        function, plan = pisa_backward_key, plan_backward_key(geometry, True, True, config)
    names = [name for name in function.arg_names if name not in plan.constants]
    return function.warmup(*(_stand_in(name, geometry) for name in names), grid=plan.grid, **plan.constants)


def _stand_in(name: str, geometry: Geometry) -> Any:
    """An argument of the type that a launch passes; a dtype stands for an aligned tensor."""
    if name == "ref_bias" and not geometry.ref_bias:
        return None
    if name.startswith("scale"):
        return 1.0
    if name.startswith(("num_", "stride_")):
        return 1
    return torch.float32 if name in FP32_POINTERS else geometry.dtype


def _sum(partials: Tensor, out: Tensor) -> None:
    """Writes `out` `[B or 1, M, H, D]`, contiguous but for the batch, from the groups' shares `[B, G, …]`."""
    batch = out.shape[0]
    size = out.numel() // batch
    stride = partials.stride(1)
    num_groups = partials.shape[0] * partials.shape[1] // batch
    sum_groups[(-(-size // SUM_BLOCK), batch)](partials, out, num_groups, size, stride, out.stride(0), BLOCK=SUM_BLOCK)
