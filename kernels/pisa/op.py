"""The Triton backend as a PyTorch operator: launches, fake tensors, autograd."""

import functools
import math
import os
from dataclasses import dataclass

import torch
import triton
from torch import Tensor
from triton.compiler import CompiledKernel

from .backward import pisa_backward_key, pisa_backward_query, pisa_row_statistics
from .configs import Config, choose_config, frame_groups, head_widths, refuse
from .forward import pisa_forward
from .primitives import sum_groups

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
INTERPRETED = triton.knobs.runtime.interpret  # the kernels run on the CPU: Triton decides it where they are defined
LOG2_E = math.log2(math.e)


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

        autotune_once(q, k, v, num_frames, num_ref_tokens, scale)
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
class Problem:
    """The tensors of one call, their sizes named as in forward.py, and what the kernels' options depend on."""

    q: Tensor
    k: Tensor
    v: Tensor
    num_frames: int
    num_ref_tokens: int
    scale: float

    @property
    def num_tokens(self) -> int:
        """N, tokens per frame."""
        return (self.q.shape[1] - self.num_ref_tokens) // self.num_frames

    @property
    def sizes(self) -> tuple[int, int, int]:
        """The kernels' arguments num_frames, num_tokens, num_ref_tokens."""
        return self.num_frames, self.num_tokens, self.num_ref_tokens

    @property
    def outer_strides(self) -> list[int]:
        """(batch, head) strides of q, k and v."""
        return [x.stride(axis) for x in (self.q, self.k, self.v) for axis in (0, 2)]

    def constants(self, config: Config, groups: int) -> dict[str, object]:
        """Compile-time arguments that all three attention kernels share."""
        q, k, v = self.q, self.k, self.v
        block = max(config.block_q, config.block_k)
        return {
            "STRIDE_Q": q.stride(1),
            "STRIDE_K": k.stride(1),
            "STRIDE_V": v.stride(1),
            "H": q.shape[2],
            "D": q.shape[3],
            "BLOCK_Q": config.block_q,
            "BLOCK_K": config.block_k,
            "EVEN": self.num_tokens % block == 0 and self.num_ref_tokens % block == 0,
            "ALIGN": math.gcd(16, *(stride for x in (q, k, v) for stride in x.stride()[:3])),
            "PRECISION": "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee",
            "SPLIT": groups > 1,
            **config.launch_options(),
        }

    def config(self, kernel: str) -> Config:
        """The configuration of one kernel for these tensors."""
        return choose_config(
            kernel,
            device=self.q.device,
            dtype=self.q.dtype,
            head_dim=self.q.shape[3],
            num_tokens=self.num_tokens,
            num_ref_tokens=self.num_ref_tokens,
        )

    def refuse_spills(self, kernel: str, config: Config, compiled: CompiledKernel | None) -> None:
        """Stops using a configuration that spills on this GPU; its results are right, but slow."""
        if compiled is not None and compiled.n_spills:  # the interpreter compiles nothing
            refuse(kernel, self.q.shape[3], config)

    def groups(self, block: int) -> int:
        """Number of groups of frames for tiles of `block` rows."""
        return frame_groups(
            num_frames=self.num_frames,
            num_tokens=self.num_tokens,
            num_ref_tokens=self.num_ref_tokens,
            heads=self.q.shape[0] * self.q.shape[2],
            block=block,
            slots=_slots(self.q.device),
        )

    def programs(self, block: int, groups: int) -> tuple[int, int]:
        """Number of reference programs, and of all programs, for tiles of `block` rows."""
        heads = self.q.shape[0] * self.q.shape[2]
        reference = heads * groups * triton.cdiv(self.num_ref_tokens, block)
        return reference, reference + heads * self.num_frames * triton.cdiv(self.num_tokens, block)

    def partials(self, *leading: int) -> Tensor:
        """Uninitialised fp32 `[B, *leading, M, H, D]`."""
        batch, _, num_heads, head_dim = self.q.shape
        return self.q.new_empty((batch, *leading, self.num_ref_tokens, num_heads, head_dim), dtype=torch.float32)

    def sum_groups(self, partials: Tensor, out: Tensor) -> None:
        """Writes the reference tokens of `out` `[B, T, H, D]` from the groups' shares `[B, G, …]`."""
        reference = out[:, self.num_frames * self.num_tokens :]
        batch, size, block = out.shape[0], reference[0].numel(), 1024
        sum_groups[(triton.cdiv(size, block), batch)](
            partials, reference, partials.shape[1], size, partials.stride(1), out.stride(0), BLOCK=block
        )


@functools.cache
def _slots(device: torch.device) -> int:
    """How many programs run at the same time, two per multiprocessor; an H200's without a GPU."""
    if device.type != "cuda":
        return 264
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count


def run_forward(problem: Problem, save: bool, config: Config) -> tuple[Tensor, Tensor, Tensor]:
    """Launches the forward kernel; see `_forward`."""
    q, k, v = problem.q, problem.k, problem.v
    out, reference_outputs, lse = _forward_fake(
        q, k, v, problem.num_frames, problem.num_ref_tokens, problem.scale, save
    )
    groups = problem.groups(config.block_q)
    partials = problem.partials(groups, 2)
    reference_programs, programs = problem.programs(config.block_q, groups)
    qk_main, qk_tail = head_widths(q.shape[3])
    pv_main, pv_tail = head_widths(q.shape[3], split=config.split_values)
    compiled = pisa_forward[(programs,)](
        q, k, v, out, reference_outputs, lse, partials, *problem.outer_strides,
        reference_programs, *problem.sizes, groups, problem.scale * LOG2_E,
        QK_MAIN=qk_main, QK_TAIL=qk_tail, PV_MAIN=pv_main, PV_TAIL=pv_tail,
        SAVE=save, **problem.constants(config, groups),
    )  # fmt: skip
    problem.refuse_spills(_forward_kernel(save), config, compiled)
    if groups > 1:
        problem.sum_groups(partials, out)
    return out, reference_outputs, lse


def _forward_kernel(save: bool) -> str:
    return "forward_training" if save else "forward"


def run_row_statistics(
    problem: Problem, out: Tensor, out_gradient: Tensor, reference_outputs: Tensor, lse: Tensor
) -> Tensor:
    """lse' and δ' of every row, fp32 `[2, B, H, R]`; see backward.py."""
    statistics = lse.new_empty((2, *lse.shape))
    block = 64
    reference_programs, programs = problem.programs(block, groups=1)
    num_heads, head_dim = out.shape[2:]
    main, tail = head_widths(head_dim)
    pisa_row_statistics[(programs,)](
        out, out_gradient, reference_outputs, lse, *statistics, reference_programs, *problem.sizes,
        H=num_heads, D=head_dim, MAIN=main, TAIL=tail, BLOCK=block,
    )  # fmt: skip
    return statistics


def run_backward_query(problem: Problem, out_gradient: Tensor, statistics: Tensor, config: Config) -> Tensor:
    """The gradient of q."""
    q, k, v = problem.q, problem.k, problem.v
    groups = problem.groups(config.block_q)
    gradient, partials = q.new_empty(q.shape), problem.partials(groups if groups > 1 else 0)
    reference_programs, programs = problem.programs(config.block_q, groups)
    main, tail = head_widths(q.shape[3])
    compiled = pisa_backward_query[(programs,)](
        q, k, v, out_gradient, *statistics, gradient, partials, *problem.outer_strides,
        reference_programs, *problem.sizes, groups, problem.scale, problem.scale * LOG2_E,
        MAIN=main, TAIL=tail, **problem.constants(config, groups),
    )  # fmt: skip
    problem.refuse_spills("backward_query", config, compiled)
    if groups > 1:
        problem.sum_groups(partials, gradient)
    return gradient


def run_backward_key(
    problem: Problem, out_gradient: Tensor, statistics: Tensor, config: Config
) -> tuple[Tensor, Tensor]:
    """The gradients of k and v."""
    q, k, v = problem.q, problem.k, problem.v
    groups = problem.groups(config.block_k)
    gradients = k.new_empty(k.shape), v.new_empty(v.shape)
    partials = [problem.partials(groups if groups > 1 else 0) for _ in gradients]
    reference_programs, programs = problem.programs(config.block_k, groups)
    main, tail = head_widths(q.shape[3])
    compiled = pisa_backward_key[(programs,)](
        q, k, v, out_gradient, *statistics, *gradients, *partials, *problem.outer_strides,
        reference_programs, *problem.sizes, groups, problem.scale, problem.scale * LOG2_E,
        MAIN=main, TAIL=tail, **problem.constants(config, groups),
    )  # fmt: skip
    problem.refuse_spills("backward_key", config, compiled)
    if groups > 1:
        for partial, gradient in zip(partials, gradients, strict=True):
            problem.sum_groups(partial, gradient)
    return gradients


@torch.library.custom_op("videomaker::pisa_forward", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, num_frames: int, num_ref_tokens: int, scale: float, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, and unless `save` is False the reference's outputs per frame and the log-sum-exp of all rows."""
    problem = Problem(q, k, v, num_frames, num_ref_tokens, scale)
    with torch.cuda.device_of(q):
        return run_forward(problem, save, problem.config(_forward_kernel(save)))


@_forward.register_fake
def _forward_fake(
    q: Tensor, k: Tensor, v: Tensor, num_frames: int, num_ref_tokens: int, scale: float, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    batch, all_tokens, num_heads, head_dim = q.shape
    saved_frames = num_frames + 1 if save else 0
    saved_rows = all_tokens + num_frames * num_ref_tokens if save else 0
    return (
        q.new_empty(q.shape),
        q.new_empty((batch, saved_frames, num_ref_tokens, num_heads, head_dim)),
        q.new_empty((batch, num_heads, saved_rows), dtype=torch.float32),
    )


@torch.library.custom_op("videomaker::pisa_backward", mutates_args=())
def _backward(
    out_gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, reference_outputs: Tensor, lse: Tensor,
    num_frames: int, num_ref_tokens: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of q, k and v."""
    problem = Problem(q, k, v, num_frames, num_ref_tokens, scale)
    out_gradient = out_gradient.contiguous()
    with torch.cuda.device_of(q):
        statistics = run_row_statistics(problem, out, out_gradient, reference_outputs, lse)
        q_gradient = run_backward_query(problem, out_gradient, statistics, problem.config("backward_query"))
        key_gradients = run_backward_key(problem, out_gradient, statistics, problem.config("backward_key"))
    return q_gradient, *key_gradients


@_backward.register_fake
def _backward_fake(
    out_gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, reference_outputs: Tensor, lse: Tensor,
    num_frames: int, num_ref_tokens: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup_context(ctx, inputs, output):
    q, k, v, ctx.num_frames, ctx.num_ref_tokens, ctx.scale, save = inputs
    out, reference_outputs, lse = output
    ctx.mark_non_differentiable(reference_outputs, lse)
    ctx.set_materialize_grads(False)
    if save:
        ctx.save_for_backward(q, k, v, out, reference_outputs, lse)


def _forward_autograd(ctx, out_gradient, *_):
    if out_gradient is None:
        return (None,) * 7
    gradients = _backward(out_gradient, *ctx.saved_tensors, ctx.num_frames, ctx.num_ref_tokens, ctx.scale)
    return *gradients, None, None, None, None


def _backward_autograd(ctx, *_):
    raise NotImplementedError("PISA attention's Triton backend has no second derivative: use backend='naive'")


_forward.register_autograd(_forward_autograd, setup_context=_setup_context)
_backward.register_autograd(_backward_autograd)
