"""Every way to compute PISA attention that the benchmark compares, behind one signature.

`attend(q, k, v, *, num_frames, num_ref_tokens, scale)` on `[B, T, H, D]`, as `pisa_attention`.
"""

import functools
import importlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from videomaker.kernels import pisa_attention
from videomaker.kernels.pisa import partials, torch_kernels
from videomaker.kernels.pisa.naive import pisa_naive


@dataclass(frozen=True)
class Rival:
    """One path: `attend`, and for the usual ones `joined(q, k, v, scale)` on sequences `[B·F, N + M, H, D]`."""

    name: str
    attend: Callable[..., Tensor]
    joined: Callable[..., Tensor] | None = None
    slow_start: bool = False  # compiles for every shape, so it runs on the main cases only
    compiled: bool = False  # by torch.compile, in whole or in part
    forward_only: bool = False  # its backward would hold all scores at once


def rivals(device: torch.device, dtype: torch.dtype) -> list[Rival]:
    """All paths to try on this device; those that cannot run say so when they are called.

    Ours comes first and what compiles for minutes last: a rival may end the process or outlast its limit.
    """
    if device.type == "cpu":
        return [
            Rival("sdpa", functools.partial(pisa_attention, backend="sdpa")),
            _usual("usual", None),
            Rival("naive", pisa_naive, forward_only=True),
        ]
    half = dtype != torch.float32
    libraries = ("flash", "cudnn", "flash-attn 2", "flash-attn 4") if half else ("efficient",)
    return [
        Rival("triton", functools.partial(pisa_attention, backend="triton")),
        *(_usual(f"usual, {kernel}", kernel) for kernel in libraries[:2]),
        *(
            Rival(f"partials, {kernel}", functools.partial(library_partials, kernel=kernel), compiled=True)
            for kernel in libraries
        ),
        Rival("flex", flex, slow_start=True, compiled=True),
    ]


def _usual(name: str, kernel: str | None) -> Rival:
    joined = functools.partial(attend_joined, kernel=kernel)
    return Rival(name, functools.partial(usual, kernel=kernel), joined)


def ours(device: torch.device) -> str:
    """The path that the speed-ups are for."""
    return "sdpa" if device.type == "cpu" else "triton"


def usual(
    q: Tensor, k: Tensor, v: Tensor, *, num_frames: int, num_ref_tokens: int, scale: float, kernel: str | None
) -> Tensor:
    """Repeat the reference, concatenate, one attention call, split, average."""
    q, k, v = (join(x, num_frames, num_ref_tokens) for x in (q, k, v))
    return average(attend_joined(q, k, v, scale, kernel=kernel), num_frames, num_ref_tokens)


def attend_joined(q: Tensor, k: Tensor, v: Tensor, scale: float, *, kernel: str | None) -> Tensor:
    """torch's attention on `[B·F, N + M, H, D]` with one kernel forced."""
    backends = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
    }
    with sdpa_kernel(backends[kernel]) if kernel else nullcontext():
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), scale=scale)
    return out.transpose(1, 2)


def join(x: Tensor, num_frames: int, num_ref_tokens: int) -> Tensor:
    """`[B, F·N + M, ...]` -> `[B·F, N + M, ...]`: every frame with its copy of the reference."""
    frames, reference = x.split([x.shape[1] - num_ref_tokens, num_ref_tokens], dim=1)
    frames = frames.unflatten(1, (num_frames, -1))
    copies = reference.unsqueeze(1).expand(-1, num_frames, *reference.shape[1:])
    return torch.cat([frames, copies], dim=2).flatten(0, 1)


def average(x: Tensor, num_frames: int, num_ref_tokens: int) -> Tensor:
    """`[B·F, N + M, ...]` -> `[B, F·N + M, ...]`: the frames, and the mean of the reference's outputs."""
    x = x.unflatten(0, (-1, num_frames))
    frames, reference = x.split([x.shape[2] - num_ref_tokens, num_ref_tokens], dim=2)
    return torch.cat([frames.flatten(1, 2), reference.mean(dim=1)], dim=1)


def layer(rival: Rival, x: Tensor, qkv: Tensor, to_out: Tensor, *, num_heads: int, **options: float) -> Tensor:
    """A whole attention layer: x `[B, T, C]`, one fused projection `[3C, C]`, attention, output projection `[C, C]`."""
    frames, reference = options["num_frames"], options["num_ref_tokens"]
    if rival.joined is None:
        q, k, v = F.linear(x, qkv).unflatten(-1, (3, num_heads, -1)).unbind(2)
        return F.linear(rival.attend(q, k, v, **options).flatten(2), to_out)
    q, k, v = F.linear(join(x, frames, reference), qkv).unflatten(-1, (3, num_heads, -1)).unbind(2)
    out = rival.joined(q, k, v, options["scale"])
    return F.linear(average(out, frames, reference).flatten(2), to_out)


def flex(q: Tensor, k: Tensor, v: Tensor, *, num_frames: int, num_ref_tokens: int, scale: float) -> Tensor:
    """FlexAttention over one sequence with a block mask; only the reference's queries are repeated."""
    frame_rows = q.shape[1] - num_ref_tokens
    copies = q[:, frame_rows:].unsqueeze(1).expand(-1, num_frames, -1, -1, -1).flatten(1, 2)
    queries = torch.cat([q[:, :frame_rows], copies], dim=1).transpose(1, 2)
    mask = _flex_mask(num_frames, frame_rows // num_frames, num_ref_tokens, q.device)
    out = _compiled_flex()(queries, k.transpose(1, 2), v.transpose(1, 2), block_mask=mask, scale=scale).transpose(1, 2)
    reference = out[:, frame_rows:].unflatten(1, (num_frames, num_ref_tokens)).mean(dim=1)
    return torch.cat([out[:, :frame_rows], reference], dim=1)


@functools.cache
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


@functools.lru_cache(maxsize=4)
def _flex_mask(num_frames: int, frame_tokens: int, num_ref_tokens: int, device: torch.device) -> object:
    from torch.nn.attention.flex_attention import create_block_mask

    frame_rows = num_frames * frame_tokens

    def sees(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        frame = torch.where(row < frame_rows, row // frame_tokens, (row - frame_rows) // max(num_ref_tokens, 1))
        return (column >= frame_rows) | (column // frame_tokens == frame)

    rows = frame_rows + num_frames * num_ref_tokens
    return create_block_mask(sees, None, None, rows, frame_rows + num_ref_tokens, device=device, _compile=True)


def library_partials(q: Tensor, k: Tensor, v: Tensor, *, kernel: str, **options: float) -> Tensor:
    """The (3F + 1) partials of the sdpa backend, from one library's kernels."""
    if kernel in EXTRA_KERNELS and kernel not in torch_kernels.KERNELS:
        torch_kernels.KERNELS[kernel] = EXTRA_KERNELS[kernel]()
    return partials.pisa_partials(q, k, v, kernel=kernel, **options)


def compile_merge() -> None:
    """Fuse the partials' merge into one kernel, as the strongest rival would have it; leave it where Inductor fails."""
    torch._dynamo.config.recompile_limit = 64  # one for each kind of strides
    compiled = torch.compile(partials.merge, dynamic=True)
    out, lse = torch.zeros(2, 2, 32, 16, device="cuda"), torch.zeros(2, 2, 32, device="cuda")
    try:
        compiled(out, lse, out, lse)
    except Exception as error:
        print(f"the partials' merge is not compiled: {type(error).__name__}: {error}")
        return
    partials.merge = compiled


class _Cudnn:
    """cuDNN through torch. Its log-sum-exp has a layout of its own, which the backward must find again."""

    def __init__(self) -> None:
        self.layouts: dict[tuple, tuple] = {}

    def forward(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        out, lse = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, scale=scale)[:2]
        self.layouts[q.shape, q.stride(), k.stride()] = lse.shape, lse.stride()
        return out, lse.reshape(q.shape[:3])

    def backward(
        self, grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        shape, stride = self.layouts[q.shape, q.stride(), k.stride()]
        lse = torch.empty_strided(shape, stride, dtype=lse.dtype, device=lse.device).copy_(lse.reshape(shape))
        unused = torch.zeros((), dtype=torch.long, device=q.device)  # dropout's seed and offset
        return torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
            *(grad_out, q, k, v, out, lse, unused, unused),
            *(None, None, None, q.shape[2], k.shape[2], 0.0, False),
            scale=scale,
        )


def _flash_attn_2() -> torch_kernels.Kernel:
    module = importlib.import_module("flash_attn.flash_attn_interface")
    options = {
        "dropout_p": 0.0,
        "causal": False,
        "window_size_left": -1,
        "window_size_right": -1,
        "softcap": 0.0,
        "alibi_slopes": None,
    }

    def forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out, lse, *_ = module._flash_attn_forward(q, k, v, softmax_scale=scale, return_softmax=False, **options)
        return out.transpose(1, 2), lse

    def backward(
        grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
    ) -> tuple[Tensor, ...]:
        grad_out, q, k, v, out = (x.transpose(1, 2) for x in (grad_out, q, k, v, out))
        grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v)]
        module._flash_attn_backward(
            *(grad_out, q, k, v, out, lse.contiguous(), *grads),
            softmax_scale=scale,
            deterministic=False,
            **options,
        )
        return tuple(x.transpose(1, 2) for x in grads)

    return torch_kernels.Kernel(forward, backward)


def _flash_attn_4() -> torch_kernels.Kernel:
    module = importlib.import_module("flash_attn.cute.interface")

    def forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out, lse = module._flash_attn_fwd(q, k, v, softmax_scale=scale, return_lse=True)[:2]
        return out.transpose(1, 2), lse

    def backward(
        grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
    ) -> tuple[Tensor, ...]:
        grad_out, q, k, v, out = (x.transpose(1, 2) for x in (grad_out, q, k, v, out))
        grads = module._flash_attn_bwd(q, k, v, out, grad_out.contiguous(), lse.contiguous(), softmax_scale=scale)
        return tuple(x.transpose(1, 2) for x in grads[:3])

    return torch_kernels.Kernel(forward, backward)


EXTRA_KERNELS: dict[str, Callable[[], object]] = {
    "cudnn": _Cudnn,
    "flash-attn 2": _flash_attn_2,
    "flash-attn 4": _flash_attn_4,
}
