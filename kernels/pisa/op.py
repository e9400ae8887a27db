"""The Triton backend as a PyTorch operator: launches, fake tensors, autograd."""

import functools
import math
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from .backward import pisa_backward_key, pisa_backward_query, pisa_row_statistics
from .configs import Config, choose_config, frame_groups, head_widths
from .forward import pisa_forward
from .primitives import sum_groups

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
INTERPRETED = triton.knobs.runtime.interpret  # the kernels run on the CPU: Triton decides it where they are defined
LOG2_E = math.log2(math.e)


def pisa_triton(q: Tensor, k: Tensor, v: Tensor, num_frames: int, num_ref_tokens: int, scale: float) -> Tensor:
    """PISA attention by the fused kernels; see `pisa_attention` for the arguments, which are validated already.

    Under autocast q, k and v are cast as by PyTorch's own attention. The second derivative is not implemented.
    """
    dtype = torch.get_autocast_dtype(q.device.type) if torch.is_autocast_enabled(q.device.type) else q.dtype
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    if INTERPRETED and dtype == torch.bfloat16:  # Triton's interpreter cannot multiply bfloat16 matrices
        q, k, v = q.float(), k.float(), v.float()
    if scale < 0:  # the kernels take the maximum before they scale
        q, scale = -q, -scale
    save = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    return _forward(q, k, v, num_frames, num_ref_tokens, scale, save)[0].to(dtype)


def triton_unavailable_reason(q: Tensor) -> str | None:
    """Why the kernels cannot run on tensors like `q`; None if they can."""
    if q.dtype not in DTYPES:
        return f"its kernels take float16, bfloat16 or float32, not {q.dtype}"
    if INTERPRETED:
        return None
    if q.device.type != "cuda":
        return f"the tensors are on {q.device.type}, it needs a GPU (or TRITON_INTERPRET=1)"
    if torch.version.hip is None and torch.cuda.get_device_capability(q.device) < (8, 0):
        return f"{torch.cuda.get_device_name(q.device)} is older than compute capability 8.0"
    return None


@dataclass(frozen=True)
class _Problem:
    """The sizes of one call, named as in forward.py, and what the kernels' options depend on."""

    batch: int
    num_heads: int
    num_frames: int
    num_tokens: int
    num_reference: int
    head_dim: int
    align: int
    precision: str
    slots: int

    @classmethod
    def of(cls, q: Tensor, k: Tensor, v: Tensor, num_frames: int, num_reference: int) -> "_Problem":
        batch, all_tokens, num_heads, head_dim = q.shape
        return cls(
            batch=batch,
            num_heads=num_heads,
            num_frames=num_frames,
            num_tokens=(all_tokens - num_reference) // num_frames,
            num_reference=num_reference,
            head_dim=head_dim,
            align=math.gcd(16, *(stride for x in (q, k, v) for stride in x.stride()[:3])),
            precision="tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee",
            slots=_slots(q.device),
        )

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.num_frames, self.num_tokens, self.num_reference

    def groups(self, block: int) -> int:
        return frame_groups(
            num_frames=self.num_frames,
            num_tokens=self.num_tokens,
            num_reference=self.num_reference,
            heads=self.batch * self.num_heads,
            block=block,
            slots=self.slots,
        )

    def programs(self, block: int, groups: int) -> tuple[int, int]:
        """Number of reference programs, and of all programs, for tiles of `block` rows."""
        per_row_of_tiles = self.batch * self.num_heads
        reference = per_row_of_tiles * groups * triton.cdiv(self.num_reference, block)
        return reference, reference + per_row_of_tiles * self.num_frames * triton.cdiv(self.num_tokens, block)

    def is_even(self, block: int) -> bool:
        """Whether loops over tokens in steps of `block` never meet a partial tile."""
        return self.num_tokens % block == 0 and self.num_reference % block == 0

    def partials(self, q: Tensor, *leading: int) -> Tensor:
        """Uninitialised fp32 `[B, *leading, M, H, D]`."""
        shape = (self.batch, *leading, self.num_reference, self.num_heads, self.head_dim)
        return q.new_empty(shape, dtype=torch.float32)


@functools.cache
def _slots(device: torch.device) -> int:
    """How many programs run at the same time, two per multiprocessor; an H200's without a GPU."""
    if device.type != "cuda":
        return 264
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count


@torch.library.custom_op("videomaker::pisa_forward", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, num_frames: int, num_reference: int, scale: float, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, and unless `save` is False the reference's outputs per frame and the log-sum-exp of all rows."""
    out, reference_outputs, lse = _forward_fake(q, k, v, num_frames, num_reference, scale, save)
    problem = _Problem.of(q, k, v, num_frames, num_reference)
    config = choose_config("forward", problem.head_dim, q.dtype)
    groups = problem.groups(config.block_q)
    partials = problem.partials(q, groups, 2)
    reference_programs, programs = problem.programs(config.block_q, groups)
    with torch.cuda.device_of(q):
        pisa_forward[(programs,)](
            q, k, v, out, reference_outputs, lse, partials, *_outer_strides(q, k, v),
            reference_programs, *problem.sizes, groups, scale * LOG2_E, **_token_strides(q, k, v),
            H=problem.num_heads, D=problem.head_dim, QK_MAIN=config.qk_widths[0], QK_TAIL=config.qk_widths[1],
            PV_MAIN=config.pv_widths[0], PV_TAIL=config.pv_widths[1],
            BLOCK_Q=config.block_q, BLOCK_K=config.block_k, EVEN=problem.is_even(config.block_k), ALIGN=problem.align,
            PRECISION=problem.precision, SAVE=save, SPLIT=groups > 1, **config.launch_options(),
        )  # fmt: skip
        if groups > 1:
            _sum_groups(partials, out, problem)
    return out, reference_outputs, lse


@_forward.register_fake
def _forward_fake(
    q: Tensor, k: Tensor, v: Tensor, num_frames: int, num_reference: int, scale: float, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    batch, all_tokens, num_heads, head_dim = q.shape
    saved_frames = num_frames + 1 if save else 0
    saved_rows = all_tokens + num_frames * num_reference if save else 0
    return (
        q.new_empty(q.shape),
        q.new_empty((batch, saved_frames, num_reference, num_heads, head_dim)),
        q.new_empty((batch, num_heads, saved_rows), dtype=torch.float32),
    )


@torch.library.custom_op("videomaker::pisa_backward", mutates_args=())
def _backward(
    out_gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, reference_outputs: Tensor, lse: Tensor,
    num_frames: int, num_reference: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of q, k and v."""
    out_gradient = out_gradient.contiguous()
    problem = _Problem.of(q, k, v, num_frames, num_reference)
    with torch.cuda.device_of(q):
        row_lse, row_delta = _row_statistics(out, out_gradient, reference_outputs, lse, problem)
        rows = (out_gradient, row_lse, row_delta)
        q_gradient = _query_gradient(q, k, v, *rows, problem, scale)
        k_gradient, v_gradient = _key_gradients(q, k, v, *rows, problem, scale)
    return q_gradient, k_gradient, v_gradient


@_backward.register_fake
def _backward_fake(
    out_gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, reference_outputs: Tensor, lse: Tensor,
    num_frames: int, num_reference: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _row_statistics(
    out: Tensor, out_gradient: Tensor, reference_outputs: Tensor, lse: Tensor, problem: _Problem
) -> Tensor:
    """lse' and δ' of every row, fp32 `[2, B, H, R]`; see backward.py."""
    statistics = lse.new_empty((2, *lse.shape))
    block = 64
    reference_programs, programs = problem.programs(block, groups=1)
    main, tail = head_widths(problem.head_dim)
    pisa_row_statistics[(programs,)](
        out, out_gradient, reference_outputs, lse, *statistics, reference_programs, *problem.sizes,
        H=problem.num_heads, D=problem.head_dim, MAIN=main, TAIL=tail, BLOCK=block,
    )  # fmt: skip
    return statistics


def _query_gradient(
    q: Tensor, k: Tensor, v: Tensor, out_gradient: Tensor, row_lse: Tensor, row_delta: Tensor,
    problem: _Problem, scale: float,
) -> Tensor:  # fmt: skip
    config = choose_config("backward_query", problem.head_dim, q.dtype)
    groups = problem.groups(config.block_q)
    gradient, partials = q.new_empty(q.shape), problem.partials(q, groups if groups > 1 else 0)
    reference_programs, programs = problem.programs(config.block_q, groups)
    pisa_backward_query[(programs,)](
        q, k, v, out_gradient, row_lse, row_delta, gradient, partials, *_outer_strides(q, k, v),
        reference_programs, *problem.sizes, groups, scale, scale * LOG2_E, **_token_strides(q, k, v),
        **_backward_options(problem, config, config.block_k, groups),
    )  # fmt: skip
    if groups > 1:
        _sum_groups(partials, gradient, problem)
    return gradient


def _key_gradients(
    q: Tensor, k: Tensor, v: Tensor, out_gradient: Tensor, row_lse: Tensor, row_delta: Tensor,
    problem: _Problem, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    config = choose_config("backward_key", problem.head_dim, q.dtype)
    groups = problem.groups(config.block_k)
    gradients = k.new_empty(k.shape), v.new_empty(v.shape)
    partials = [problem.partials(q, groups if groups > 1 else 0) for _ in gradients]
    reference_programs, programs = problem.programs(config.block_k, groups)
    pisa_backward_key[(programs,)](
        q, k, v, out_gradient, row_lse, row_delta, *gradients, *partials, *_outer_strides(q, k, v),
        reference_programs, *problem.sizes, groups, scale, scale * LOG2_E, **_token_strides(q, k, v),
        **_backward_options(problem, config, config.block_q, groups),
    )  # fmt: skip
    if groups > 1:
        for partial, gradient in zip(partials, gradients, strict=True):
            _sum_groups(partial, gradient, problem)
    return gradients


def _backward_options(problem: _Problem, config: Config, loop_block: int, groups: int) -> dict[str, object]:
    main, tail = config.qk_widths
    return dict(
        H=problem.num_heads, D=problem.head_dim, MAIN=main, TAIL=tail, BLOCK_Q=config.block_q, BLOCK_K=config.block_k,
        EVEN=problem.is_even(loop_block), ALIGN=problem.align, PRECISION=problem.precision, SPLIT=groups > 1,
        **config.launch_options(),
    )  # fmt: skip


def _sum_groups(partials: Tensor, out: Tensor, problem: _Problem) -> None:
    """Writes the reference tokens of `out` `[B, T, H, D]` from the groups' shares."""
    batch, groups, *_ = partials.shape
    reference = out[:, problem.num_frames * problem.num_tokens :]
    size = reference[0].numel()
    block = 1024
    sum_groups[(triton.cdiv(size, block), batch)](
        partials, reference, groups, size, partials.stride(1), out.stride(0), BLOCK=block
    )


def _outer_strides(*tensors: Tensor) -> list[int]:
    """(batch, head) strides of each."""
    return [x.stride(axis) for x in tensors for axis in (0, 2)]


def _token_strides(q: Tensor, k: Tensor, v: Tensor) -> dict[str, int]:
    return {"STRIDE_Q": q.stride(1), "STRIDE_K": k.stride(1), "STRIDE_V": v.stride(1)}


def _setup_context(ctx, inputs, output):
    q, k, v, ctx.num_frames, ctx.num_reference, ctx.scale, save = inputs
    out, reference_outputs, lse = output
    ctx.mark_non_differentiable(reference_outputs, lse)
    ctx.set_materialize_grads(False)
    if save:
        ctx.save_for_backward(q, k, v, out, reference_outputs, lse)


def _forward_autograd(ctx, out_gradient, *_):
    if out_gradient is None:
        return (None,) * 7
    gradients = _backward(out_gradient, *ctx.saved_tensors, ctx.num_frames, ctx.num_reference, ctx.scale)
    return *gradients, None, None, None, None


def _backward_autograd(ctx, *_):
    raise NotImplementedError("PISA attention's Triton backend has no second derivative: use backend='naive'")


_forward.register_autograd(_forward_autograd, setup_context=_setup_context)
_backward.register_autograd(_backward_autograd)
