"""Launches of the kernels: which grid, arguments and constants a call needs, worked out once for each kind of call."""

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from .backward import pisa_backward_key, pisa_backward_query, pisa_row_statistics
from .configs import Config, choose_config, frame_groups, head_widths
from .forward import pisa_forward
from .primitives import sum_groups

LOG2_E = math.log2(math.e)
SUM_BLOCK, STATISTICS_BLOCK = 1024, 64


class Geometry(NamedTuple):
    """Everything about a call but its numbers; letters as in forward.py. Equal geometries share their plans."""

    device: torch.device
    dtype: torch.dtype
    num_frames: int
    num_tokens: int
    num_ref_tokens: int
    shape: tuple[int, ...]  # of q: [B, T, H, D]
    strides: tuple[tuple[int, ...], ...]  # of q, k, v, k_ref, v_ref
    ref_batch: int  # 1 where all videos share one reference
    ref_queries: bool  # whether the reference asks as well, as in PISA
    ref_bias: bool
    precision: str  # of products of float32: "ieee" or "tf32"

    @property
    def heads(self) -> int:
        """B·H."""
        return self.shape[0] * self.shape[2]

    @property
    def outer_strides(self) -> tuple[int, ...]:
        """(batch, head) strides of q, k, v, k_ref and v_ref."""
        return tuple(stride[axis] for stride in self.strides for axis in (0, 2))

    @property
    def is_shared(self) -> bool:
        """Whether several videos share one reference, whose gradient is then a sum over them."""
        return self.ref_batch < self.shape[0]


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
            (q.stride(), k.stride(), v.stride(), k_ref.stride(), v_ref.stride()),
            k_ref.shape[0],
            self.ref_queries,
            self.ref_bias is not None,
            float32_precision() if q.dtype == torch.float32 else "ieee",
        )

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """The inputs in the kernels' order."""
        return self.q, self.k, self.v, self.k_ref, self.v_ref, self.ref_bias


class Plan(NamedTuple):
    """One kernel's launch for one geometry."""

    grid: tuple[int, ...]
    integers: tuple[int, ...]
    constants: dict[str, object]
    partials: tuple[int, ...]  # shape of the groups' shares of the reference's results

    @property
    def is_split(self) -> bool:
        """Whether the reference's results are sums of the groups' shares."""
        return self.constants["SPLIT"]


def float32_precision() -> str:
    """What the program allows products of float32 on a GPU to be: "ieee" or "tf32"; either of PyTorch's switches counts.

    The older switch cannot be read any more once the newer one was used.
    """
    precision = torch.backends.cuda.matmul.fp32_precision
    precision = torch.backends.fp32_precision if precision == "none" else precision
    return "tf32" if precision == "tf32" else "ieee"


def config_of(kernel: str, geometry: Geometry) -> Config:
    """The configuration of one kernel: tuned for such shapes, or the table's."""
    return choose_config(
        kernel,
        device=geometry.device,
        dtype=geometry.dtype,
        head_dim=geometry.shape[3],
        num_tokens=geometry.num_tokens,
        num_ref_tokens=geometry.num_ref_tokens,
        ref_queries=geometry.ref_queries,
    )


def shared_constants(geometry: Geometry, config: Config, *, is_split: bool) -> dict[str, object]:
    """Compile-time arguments that the three attention kernels share."""
    block = max(config.block_q, config.block_k)
    stride_q, stride_k, stride_v = (stride[1] for stride in geometry.strides[:3])
    return {
        "STRIDE_Q": stride_q,
        "STRIDE_K": stride_k,
        "STRIDE_V": stride_v,
        "H": geometry.shape[2],
        "D": geometry.shape[3],
        "BLOCK_Q": config.block_q,
        "BLOCK_K": config.block_k,
        "EVEN": geometry.num_tokens % block == 0 and geometry.num_ref_tokens % block == 0,
        "ALIGN": math.gcd(16, *(number for stride in geometry.strides for number in stride[:3])),
        "PRECISION": geometry.precision,
        "REF_QUERIES": geometry.ref_queries,
        "REF_BIAS": geometry.ref_bias,
        "SPLIT": is_split,
        **config.launch_options(),
    }


def forward_constants(geometry: Geometry, config: Config, *, save: bool, is_split: bool) -> dict[str, object]:
    """Compile-time arguments of the forward kernel."""
    qk_main, qk_tail = head_widths(geometry.shape[3])
    pv_main, pv_tail = head_widths(geometry.shape[3], split=config.split_values)
    widths = {"QK_MAIN": qk_main, "QK_TAIL": qk_tail, "PV_MAIN": pv_main, "PV_TAIL": pv_tail}
    flags = {"SAVE": save, "SUM_WIDTH": 16 if config.sum_by_dot else 0}
    return widths | flags | shared_constants(geometry, config, is_split=is_split)


def backward_constants(geometry: Geometry, config: Config, *, is_split: bool) -> dict[str, object]:
    """Compile-time arguments of the two backward kernels."""
    main, tail = head_widths(geometry.shape[3])
    return {"MAIN": main, "TAIL": tail} | shared_constants(geometry, config, is_split=is_split)


@functools.lru_cache(maxsize=4096)
def plan_forward(geometry: Geometry, save: bool, config: Config | None = None) -> Plan:
    """The forward launch; `config` in place of the usual one."""
    config = config or config_of("forward_training" if save else "forward", geometry)
    groups = _groups(geometry, config.block_q) if geometry.ref_queries else 1
    constants = forward_constants(geometry, config, save=save, is_split=groups > 1)
    return _plan(geometry, config.block_q, groups, geometry.ref_queries, constants, 2)


@functools.lru_cache(maxsize=4096)
def plan_backward_query(geometry: Geometry, config: Config | None = None) -> Plan:
    """The launch for the gradient of q."""
    config = config or config_of("backward_query", geometry)
    groups = _groups(geometry, config.block_q) if geometry.ref_queries else 1
    constants = backward_constants(geometry, config, is_split=groups > 1)
    return _plan(geometry, config.block_q, groups, geometry.ref_queries, constants)


@functools.lru_cache(maxsize=4096)
def plan_backward_key(geometry: Geometry, own: bool, reference: bool, config: Config | None = None) -> Plan:
    """The launch for the gradients of k and v: of the frames' (`own`), of the reference's, or of both."""
    config = config or config_of("backward_key", geometry)
    groups = _groups(geometry, config.block_k)
    constants = backward_constants(geometry, config, is_split=reference and (groups > 1 or geometry.is_shared))
    return _plan(geometry, config.block_k, groups, reference, constants, own=own)


def forget_plans() -> None:
    """After a change of the tuned configurations."""
    for plan in (plan_forward, plan_backward_query, plan_backward_key):
        plan.cache_clear()


def _plan(
    geometry: Geometry, block: int, groups: int, reference: bool, constants: dict, *leading: int, own: bool = True
) -> Plan:
    """`reference` and `own`: whose tiles there are programs for. `leading` are dimensions of the partials."""
    num_reference_programs = reference * geometry.heads * groups * triton.cdiv(geometry.num_ref_tokens, block)
    num_own_programs = own * geometry.heads * geometry.num_frames * triton.cdiv(geometry.num_tokens, block)
    sizes = (geometry.num_frames, geometry.num_tokens, geometry.num_ref_tokens)
    batch, _, num_heads, head_dim = geometry.shape
    # The forward keeps its scratch there, too (`leading`).
    has_partials = constants["SPLIT"] or (bool(leading) and reference)
    partials = (batch, groups if has_partials else 0, *leading, geometry.num_ref_tokens, num_heads, head_dim)
    return Plan(
        grid=(num_reference_programs + num_own_programs,),
        integers=(*geometry.outer_strides, num_reference_programs, *sizes, groups),
        constants=constants,
        partials=partials,
    )


def _groups(geometry: Geometry, block: int) -> int:
    if geometry.num_ref_tokens == 0:
        return 1
    return frame_groups(
        num_frames=geometry.num_frames,
        num_tokens=geometry.num_tokens,
        num_ref_tokens=geometry.num_ref_tokens,
        heads=geometry.heads,
        block=block,
        slots=_slots(geometry.device),
        ref_queries=geometry.ref_queries,
    )


@functools.cache
def _slots(device: torch.device) -> int:
    """How many programs run at the same time, two per multiprocessor; an H200's without a GPU."""
    if device.type != "cuda":
        return 264
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count


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
    row_lse = torch.empty_like(lse) if geometry.ref_queries else lse
    row_delta = torch.empty_like(lse)
    grid, integers, constants = _plan_statistics(geometry)
    pisa_row_statistics[grid](
        out, out_gradient, reference_outputs, lse, row_lse, row_delta, *integers, **constants
    )  # fmt: skip
    return row_lse, row_delta


@functools.lru_cache(maxsize=4096)
def _plan_statistics(geometry: Geometry) -> tuple[tuple[int], tuple[int, ...], dict[str, object]]:
    constants = statistics_constants(geometry)
    plan = _plan(geometry, STATISTICS_BLOCK, 1, geometry.ref_queries, {"SPLIT": False})
    return plan.grid, plan.integers[-5:-1], constants


def statistics_constants(geometry: Geometry) -> dict[str, object]:
    """Compile-time arguments of the kernel for the row statistics."""
    main, tail = head_widths(geometry.shape[3])
    sizes = {"H": geometry.shape[2], "D": geometry.shape[3], "MAIN": main, "TAIL": tail, "BLOCK": STATISTICS_BLOCK}
    return sizes | {"REF_QUERIES": geometry.ref_queries}


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
    own_gradients = k.new_empty(k.shape), v.new_empty(v.shape)
    if geometry.ref_queries:
        first, count = geometry.num_frames * geometry.num_tokens, geometry.num_ref_tokens
        ref_gradients = tuple(x.narrow(1, first, count) for x in own_gradients)
    else:
        ref_gradients = tuple(x.new_empty(x.shape) for x in (problem.k_ref, problem.v_ref))
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


def _sum(partials: Tensor, out: Tensor) -> None:
    """Writes `out` `[B or 1, M, H, D]`, contiguous but for the batch, from the shares `[B, G, …]` of groups of frames."""
    size, batch = out[0].numel(), out.shape[0]
    stride = partials.stride(1)
    num_groups = partials.shape[0] * partials.shape[1] // batch
    sum_groups[(triton.cdiv(size, SUM_BLOCK), batch)](
        partials, out, num_groups, size, stride, out.stride(0), BLOCK=SUM_BLOCK
    )
