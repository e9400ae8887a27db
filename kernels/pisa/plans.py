"""Which grid, arguments and constants a launch needs, worked out once for each kind of call."""

import functools
import math
from typing import Any, NamedTuple

import torch
import triton

from .configs import Config, choose_config, frame_groups, head_widths

STATISTICS_BLOCK = 64
# The kernels' pointers that are float32 in every dtype.
FP32_POINTERS = frozenset(("lse", "partials", "row_lse", "row_delta", "k_partials", "v_partials", "ref_bias"))


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


class Plan(NamedTuple):
    """One kernel's launch for one geometry."""

    grid: tuple[int, ...]
    integers: tuple[int, ...]
    constants: dict[str, Any]
    partials: tuple[int, ...]  # shape of the groups' shares of the reference's results

    @property
    def is_split(self) -> bool:
        """Whether the reference's results are sums of the groups' shares."""
        return self.constants["SPLIT"]


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


def shared_constants(geometry: Geometry, config: Config, *, is_split: bool) -> dict[str, Any]:
    """Compile-time arguments that the three attention kernels share."""
    stride_q, stride_k, stride_v = (stride[1] for stride in geometry.strides[:3])
    return {
        "STRIDE_Q": stride_q,
        "STRIDE_K": stride_k,
        "STRIDE_V": stride_v,
        "H": geometry.shape[2],
        "D": geometry.shape[3],
        "BLOCK_Q": config.block_q,
        "BLOCK_K": config.block_k,
        "EVEN": config.fits(geometry.num_tokens, geometry.num_ref_tokens),
        "ALIGN": math.gcd(16, *(number for stride in geometry.strides for number in stride[:3])),
        "PRECISION": geometry.precision,
        "REF_QUERIES": geometry.ref_queries,
        "REF_BIAS": geometry.ref_bias,
        "SPLIT": is_split,
        **config.launch_options(),
    }


def forward_constants(geometry: Geometry, config: Config, *, save: bool, is_split: bool) -> dict[str, Any]:
    """Compile-time arguments of the forward kernel."""
    qk_main, qk_tail = head_widths(geometry.shape[3])
    pv_main, pv_tail = head_widths(geometry.shape[3], split=config.split_values)
    widths = {"QK_MAIN": qk_main, "QK_TAIL": qk_tail, "PV_MAIN": pv_main, "PV_TAIL": pv_tail}
    flags = {"SAVE": save, "SUM_WIDTH": 16 if config.sum_by_dot else 0}
    return widths | flags | shared_constants(geometry, config, is_split=is_split)


def backward_constants(geometry: Geometry, config: Config, *, is_split: bool) -> dict[str, Any]:
    """Compile-time arguments of the two backward kernels."""
    main, tail = head_widths(geometry.shape[3])
    return {"MAIN": main, "TAIL": tail} | shared_constants(geometry, config, is_split=is_split)


@functools.lru_cache(maxsize=4096)
def plan_forward(geometry: Geometry, save: bool, config: Config | None = None) -> Plan:
    """The forward launch; `config` in place of the usual one."""
    config = config or config_of("forward_training" if save else "forward", geometry)
    groups = _groups(geometry, config, config.block_q) if geometry.ref_queries else 1
    constants = forward_constants(geometry, config, save=save, is_split=groups > 1)
    return _plan(geometry, config.block_q, groups, geometry.ref_queries, constants, 2)


@functools.lru_cache(maxsize=4096)
def plan_backward_query(geometry: Geometry, config: Config | None = None) -> Plan:
    """The launch for the gradient of q."""
    config = config or config_of("backward_query", geometry)
    groups = _groups(geometry, config, config.block_q) if geometry.ref_queries else 1
    constants = backward_constants(geometry, config, is_split=groups > 1)
    return _plan(geometry, config.block_q, groups, geometry.ref_queries, constants)


@functools.lru_cache(maxsize=4096)
def plan_backward_key(geometry: Geometry, own: bool, reference: bool, config: Config | None = None) -> Plan:
    """The launch for the gradients of k and v: of the frames' (`own`), of the reference's, or of both."""
    config = config or config_of("backward_key", geometry)
    groups = _groups(geometry, config, config.block_k)
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


def _groups(geometry: Geometry, config: Config, block: int) -> int:
    if geometry.num_ref_tokens == 0:
        return 1
    return frame_groups(
        num_frames=geometry.num_frames,
        num_tokens=geometry.num_tokens,
        num_ref_tokens=geometry.num_ref_tokens,
        heads=geometry.heads,
        block=block,
        slots=_multiprocessors(geometry.device) * config.programs_at_once,
        ref_queries=geometry.ref_queries,
    )


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    """An H200's number without a GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


@functools.lru_cache(maxsize=4096)
def plan_statistics(geometry: Geometry) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]:
    """Grid, sizes and constants of the launch for the row statistics."""
    constants = statistics_constants(geometry)
    plan = _plan(geometry, STATISTICS_BLOCK, 1, geometry.ref_queries, {"SPLIT": False})
    return plan.grid, plan.integers[-5:-1], constants


def statistics_constants(geometry: Geometry) -> dict[str, Any]:
    """Compile-time arguments of the kernel for the row statistics."""
    main, tail = head_widths(geometry.shape[3])
    sizes = {"H": geometry.shape[2], "D": geometry.shape[3], "MAIN": main, "TAIL": tail, "BLOCK": STATISTICS_BLOCK}
    return sizes | {"REF_QUERIES": geometry.ref_queries}
