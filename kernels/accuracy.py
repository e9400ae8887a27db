"""How right an attention kernel must be: measured against float64, judged by what its dtype allows.

    error(kernel) <= 2 · error(naive in the same dtype) + band

for the output and for each gradient by itself, the frames' part and the reference's part apart. An error is
`‖x - exact‖ / ‖exact‖`; the band is for roundings that the naive path does not make.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .pisa.naive import pisa_naive

NAMES = ("out", "dq", "dk", "dv")
# Roundings to the dtype that the naive path lacks: the output of each of two partials, their merge, the average.
_ROUNDINGS = 4
# torch's vectorised float32 exp on a CPU is right to 20 ulp, 40 times the rounding unit.
_FLOAT32_EXP = 40
# A row's log-sum-exp is as large as its scores and rounded to float32: by a partial, a merge and a change of base.
_LSE_ROUNDINGS = 3
# Scores of 80 in float64 as sums of 160 products: sqrt(160) · 80 · 2**-53 = 1.1e-13, times what dP - delta cancels.
_FLOAT64_BAND = 1e-12


def error_band(dtype: torch.dtype, largest_score: float) -> float:
    """Relative error that a right kernel may add to twice the naive path's."""
    if dtype == torch.float64:
        return _FLOAT64_BAND
    roundings = _ROUNDINGS + (_FLOAT32_EXP if dtype == torch.float32 else 0)
    return roundings * torch.finfo(dtype).eps / 2 + _LSE_ROUNDINGS * largest_score * 2**-24


def largest_score(q: Tensor, k: Tensor, scale: float) -> float:
    """A bound on `|q · k| · scale` over all rows, by Cauchy and Schwarz."""
    q_norm, k_norm = (torch.linalg.vector_norm(x.float(), dim=-1).max().item() for x in (q, k))
    return q_norm * k_norm * scale


def evaluate(
    attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, **options: float
) -> list[Tensor]:
    """Output of `attention(q, k, v, **options)` and the gradients of q, k and v."""
    q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
    out = attention(q, k, v, **options)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), grad_out)]


def evaluate_naive(
    *tensors: Tensor, num_frames: int, num_ref_tokens: int, scale: float, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """`evaluate` of the naive path computed in `dtype`, by frame and head so that large shapes fit in memory.

    A frame's share is a video of that frame alone, whose reference receives a `num_frames`-th of the gradient.
    """
    *qkv, grad = tensors
    totals = [torch.zeros_like(x, dtype=torch.float64) for x in (grad, *qkv)]
    batch, tokens, heads, _ = grad.shape
    frame_tokens = (tokens - num_ref_tokens) // num_frames
    index = torch.arange(tokens, device=grad.device)
    for frame, video, head in itertools.product(range(num_frames), range(batch), range(heads)):
        rows = torch.cat([index[frame * frame_tokens :][:frame_tokens], index[num_frames * frame_tokens :]])
        q, k, v, grad = (x[video, rows, head].to(dtype)[None, :, None] for x in tensors)
        grad[:, frame_tokens:] /= num_frames
        results = evaluate(pisa_naive, q, k, v, grad, num_frames=1, num_ref_tokens=num_ref_tokens, scale=scale)
        results[0][:, frame_tokens:] /= num_frames
        for total, x in zip(totals, results, strict=True):
            total[video, :, head].index_add_(0, rows, x[0, :, 0].double())
    return totals


def errors(results: list[Tensor], exact: list[Tensor], num_ref_tokens: int) -> dict[str, float]:
    """Relative error of the frames' part and the reference's part of each result; infinite for a NaN.

    `results` may end before the gradients.
    """
    parts = {"frames": slice(None, -num_ref_tokens or None), "reference": slice(-num_ref_tokens or None, None)}
    return {
        f"{name} of {part}": relative_error(x[:, rows], y[:, rows])
        for name, x, y in zip(NAMES, results, exact, strict=False)
        for part, rows in parts.items()
        if num_ref_tokens or part == "frames"
    }


def failures(found: dict[str, float], naive: dict[str, float], band: float) -> list[str]:
    """The results in `found` whose error is beyond twice the naive path's and the band."""
    limits = {name: 2 * error + band for name, error in naive.items()}
    return [f"{name}: {error:.1e} > {limits[name]:.1e}" for name, error in found.items() if not error <= limits[name]]


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fill what `torch.empty` returns with NaN, so that an element nobody writes shows."""
    previous = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(previous[0], warn_only=previous[1])


def relative_error(x: Tensor, exact: Tensor) -> float:
    """`‖x - exact‖ / ‖exact‖`; infinite for a NaN."""
    error = torch.linalg.vector_norm(x.double() - exact) / torch.linalg.vector_norm(exact)
    return error.item() if error.isfinite() else float("inf")
