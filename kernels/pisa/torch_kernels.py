"""torch's attention kernels behind one signature: softmax attention with its log-sum-exp, and its gradient.

`forward(q, k, v, scale) -> out, lse` and `backward(grad_out, q, k, v, out, lse, scale) -> dq, dk, dv`, with q, k, v,
out `[B, H, N, D]` of any strides and lse `[B, H, N]`, natural logarithm, float32 (float64 for float64).

`backward` takes out and lse as arguments because they need not be the kernel's own: given those of a larger
attention, it returns this block of keys' exact share of the gradient.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten
MATH_SCORES = 1 << 26  # scores held at once by the math kernel, 256 MiB in float32


class Kernel(NamedTuple):
    """One library's attention, forward and backward."""

    forward: Callable[..., tuple[Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]


def choose_kernel(q: Tensor, k: Tensor, v: Tensor) -> str:
    """The fastest of KERNELS that takes q, k, v `[B, H, N, D]`."""
    if q.device.type == "cpu":
        return "cpu"
    if q.device.type != "cuda" or q.dtype == torch.float64 or not all(_is_aligned(x) for x in (q, k, v)):
        return "math"
    head_dim = q.shape[-1]
    params = torch.backends.cuda.SDPAParams(q, k, v, None, 0.0, False, False)
    # Above 192, flash's backward needs more shared memory than most GPUs have.
    if head_dim % 8 == 0 and head_dim <= 192 and torch.backends.cuda.can_use_flash_attention(params):
        return "flash"
    return "efficient" if torch.backends.cuda.can_use_efficient_attention(params) else "math"


def _is_aligned(x: Tensor) -> bool:
    """Whether every row starts on 16 bytes, as the CUDA kernels' vector loads need."""
    return all(n * x.element_size() % 16 == 0 for n in (*x.stride()[:-1], x.shape[-1])) and x.data_ptr() % 16 == 0


def _cpu_forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, scale=scale)
    # torch's kernel takes a row whose scores are all NaN or -inf for one that is masked out: zeros, and a log-sum-exp
    # of zero. That would hide a broken weight (pytorch#141128).
    suspects = lse == 0
    if suspects.any():
        exact = _math_forward(q, k, v, scale)[1].to(lse.dtype)
        lse = torch.where(suspects & ~exact.isfinite(), exact, lse)
        out = out.masked_fill(lse.isnan().unsqueeze(-1), torch.nan)
    return out, lse


def _cpu_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad_out, q, k, v, out, lse, 0.0, False, scale=scale
    )


def _flash_forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return aten._scaled_dot_product_flash_attention(q, k, v, scale=scale)[:2]


def _flash_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return aten._scaled_dot_product_flash_attention_backward(
        *(grad_out, q, k, v, out, lse.contiguous()),
        *(None, None, q.shape[2], k.shape[2], 0.0, False),
        *_no_dropout_state(q),
        scale=scale,
    )


def _efficient_forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out, lse = aten._scaled_dot_product_efficient_attention(q, k, v, None, True, scale=scale)[:2]
    return out, lse[..., : q.shape[2]]  # the kernel pads the rows to a multiple of 32


def _efficient_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    if torch.version.hip is None:
        lse = F.pad(lse, (0, -lse.shape[-1] % 32), value=torch.inf)
    return aten._scaled_dot_product_efficient_attention_backward(
        *(grad_out, q, k, v, None, out, lse.contiguous()),
        *_no_dropout_state(q),
        *(0.0, [True, True, True, False]),
        scale=scale,
    )[:3]


def _no_dropout_state(q: Tensor) -> tuple[Tensor, Tensor]:
    """Seed and offset that the backward ops ask for and, without dropout, do not read."""
    return torch.zeros((), dtype=torch.long, device=q.device), torch.zeros((), dtype=torch.long, device=q.device)


def _math_forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    dtype, (q, k, v) = q.dtype, _upcast(q, k, v)
    out, lse = [], []
    with torch.autocast(q.device.type, enabled=False):
        for q_rows in q.split(_rows_at_once(q, k), dim=2):
            scores = q_rows @ k.transpose(-2, -1) * scale
            lse.append(scores.logsumexp(dim=-1))
            out.append(torch.exp(scores - lse[-1].unsqueeze(-1)) @ v)
    return torch.cat(out, dim=2).to(dtype), torch.cat(lse, dim=2)


def _math_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    dtype, (grad_out, q, k, v, out) = q.dtype, _upcast(grad_out, q, k, v, out)
    delta = (grad_out * out).sum(dim=-1)
    dq, dk, dv = [], torch.zeros_like(k), torch.zeros_like(v)
    with torch.autocast(q.device.type, enabled=False):
        rows = (x.split(_rows_at_once(q, k), dim=2) for x in (grad_out, q, lse, delta))
        for do_rows, q_rows, lse_rows, delta_rows in zip(*rows, strict=True):
            p = torch.exp(q_rows @ k.transpose(-2, -1) * scale - lse_rows.unsqueeze(-1))
            ds = p * (do_rows @ v.transpose(-2, -1) - delta_rows.unsqueeze(-1)) * scale
            dq.append(ds @ k)
            dk += ds.transpose(-2, -1) @ q_rows
            dv += p.transpose(-2, -1) @ do_rows
    return torch.cat(dq, dim=2).to(dtype), dk.to(dtype), dv.to(dtype)


def _upcast(*tensors: Tensor) -> list[Tensor]:
    return [x if x.dtype == torch.float64 else x.float() for x in tensors]


def _rows_at_once(q: Tensor, k: Tensor) -> int:
    return max(1, MATH_SCORES // (q.shape[0] * q.shape[1] * k.shape[2]))


KERNELS = {
    "cpu": Kernel(_cpu_forward, _cpu_backward),
    "flash": Kernel(_flash_forward, _flash_backward),
    "efficient": Kernel(_efficient_forward, _efficient_backward),
    "math": Kernel(_math_forward, _math_backward),
}
