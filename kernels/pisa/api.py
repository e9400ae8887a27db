"""The public entry: check the arguments, choose a backend, run it."""

import logging
import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..transforms import refuse_forward_mode
from .naive import pisa_naive

BACKENDS = ("naive", "sdpa", "triton")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MAX_HEAD_DIM = 256

logger = logging.getLogger(__name__)
_announced: set[tuple[str, str]] = set()


def pisa_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    num_frames: int,
    num_ref_tokens: int,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attention of F video frames and one reference (PISA, section 4.2 of https://arxiv.org/abs/2412.19645).

    Every frame attends to itself and to the reference; the reference attends to itself and to each frame in
    turn, and its output is the mean over the frames.

    Args:
        q, k, v: `[B, T, H, D]`, one floating dtype and device, `1 <= D <= 256`, any strides with a contiguous
            last dimension (views of one fused projection included). `T = num_frames·N + num_ref_tokens`: the N
            tokens of each frame in turn, then the M reference tokens.
        num_frames: F, at least 1.
        num_ref_tokens: M, from 0 (plain attention within each frame) up; need not equal N.
        scale: multiplies the scores; `D ** -0.5` when None.
        backend: `"auto"` (Triton on a supported GPU, else `"sdpa"`), `"naive"`, `"sdpa"` or `"triton"`.

    Returns:
        `[B, T, H, D]`, contiguous, in the dtype of `q`; under autocast in autocast's, as PyTorch's own attention.

    Raises:
        ValueError: an argument does not fit, or the backend cannot run here; the message names the value.
    """
    _validate(q, k, v, num_frames, num_ref_tokens, scale)
    name, reason = choose_backend(q, backend)
    announce(name, reason)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    q, k, v = autocast(q, k, v)
    if name != "naive":
        refuse_forward_mode(q, k, v)
    run: Callable[..., Tensor]
    if name == "triton":
        from .op import pisa_triton as run
    elif name == "sdpa":
        from .partials import pisa_partials as run
    else:
        run = pisa_naive
    return run(q, k, v, num_frames=num_frames, num_ref_tokens=num_ref_tokens, scale=scale)


def choose_backend(q: Tensor | None = None, backend: str = "auto") -> tuple[str, str]:
    """The backend that `pisa_attention(q, ..., backend=backend)` runs, and why.

    Without `q`, answers for half precision on the first GPU, or for float32 on the CPU. Raises ValueError for a
    backend that does not exist or cannot run.
    """
    q = _probe() if q is None else q
    if backend == "auto":
        if q.device.type != "cuda":
            return "sdpa", f"the device is {q.device.type}; triton needs a GPU"
        reason = _unavailable_reason("triton", q)
        return ("triton", "supported GPU") if reason is None else ("sdpa", f"triton cannot run: {reason}")
    if backend not in BACKENDS:
        raise ValueError(f"unknown attention backend {backend!r}: choose from auto, {', '.join(BACKENDS)}")
    reason = _unavailable_reason(backend, q)
    if reason is not None:
        raise ValueError(f"attention backend {backend!r} cannot run: {reason}")
    return backend, "asked for"


def available_backends(q: Tensor | None = None) -> dict[str, str | None]:
    """For every backend, None when it can run on tensors like `q`, else the reason why not."""
    q = _probe() if q is None else q
    return {name: _unavailable_reason(name, q) for name in BACKENDS}


def _unavailable_reason(backend: str, q: Tensor) -> str | None:
    if backend != "triton":
        return None
    try:
        from .op import triton_unavailable_reason
    except ImportError as error:
        return f"the package triton is not usable ({error})"
    return triton_unavailable_reason(q)


def _probe() -> Tensor:
    if torch.cuda.is_available():
        return torch.empty(1, 1, 1, 64, device="cuda", dtype=torch.float16)
    return torch.empty(1, 1, 1, 64)


def announce(name: str, reason: str) -> None:
    """Says once for each reason, at the level of debugging, which backend was chosen."""
    if torch.compiler.is_compiling() or (name, reason) in _announced:
        return
    _announced.add((name, reason))
    logger.debug("attention backend %s: %s", name, reason)


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the dtype that autocast asks of an attention."""
    device_type = tensors[0].device.type
    if not torch.amp.is_autocast_available(device_type):  # "meta"
        return tensors
    if tensors[0].dtype == torch.float64 or not torch.is_autocast_enabled(device_type):
        return tensors
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(x.to(dtype) for x in tensors)


def _validate(q: Tensor, k: Tensor, v: Tensor, num_frames: int, num_ref_tokens: int, scale: float | None) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        validate_tensor(name, x, q)
    check_whole(num_frames=num_frames, num_ref_tokens=num_ref_tokens)
    check_scale(scale)
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}")
    if num_ref_tokens < 0:
        raise ValueError(f"num_ref_tokens must not be negative, got {num_ref_tokens}")
    frame_tokens = q.shape[1] - num_ref_tokens
    if frame_tokens < 1 or frame_tokens % num_frames:
        raise ValueError(
            f"T = {q.shape[1]} is not num_frames·N + num_ref_tokens with N >= 1, "
            f"num_frames = {num_frames}, num_ref_tokens = {num_ref_tokens}"
        )


def check_whole(**numbers: int) -> None:
    """Raises ValueError for what is no whole number; sizes that a compiler keeps open are."""
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
            raise ValueError(f"{name} must be a whole number, got {value!r}")


def check_scale(scale: float | None) -> None:
    """Raises ValueError for a scale that is no positive finite number."""
    if scale is None:
        return
    is_number = hasattr(scale, "__float__") and not (isinstance(scale, Tensor) and scale.numel() != 1)
    if not is_number or not 0 < scale < math.inf:
        raise ValueError(f"scale must be positive and finite, got {scale!r}")


def validate_tensor(name: str, x: Tensor, q: Tensor) -> None:
    """Raises ValueError unless `x` is a tensor such as the backends take, like q in shape, dtype and device."""
    _check_dense(name, x)
    if x.shape != q.shape and x.ndim == 4:
        raise ValueError(f"{name} has shape {tuple(x.shape)}, q has {tuple(q.shape)}: they must be equal")
    validate_layout(name, x, q)


def _check_dense(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} must be a tensor, got {type(x).__name__}")
    if x.layout != torch.strided:
        raise ValueError(f"{name} is {x.layout}: make it dense with to_dense()")


def validate_layout(name: str, x: Tensor, q: Tensor, *, may_be_empty: bool = False) -> None:
    """`validate_tensor` but for the equal shapes."""
    _check_dense(name, x)
    if x.ndim != 4:
        raise ValueError(f"{name} must be [B, T, H, D], got {x.ndim} dimensions: {tuple(x.shape)}")
    if x.dtype not in DTYPES:
        raise ValueError(f"{name} must be float16, bfloat16, float32 or float64, got {x.dtype}")
    if x.dtype != q.dtype:
        raise ValueError(f"{name} is {x.dtype}, q is {q.dtype}: cast them to one dtype")
    if x.device != q.device:
        raise ValueError(f"{name} is on {x.device}, q is on {q.device}: move them to one device")
    if min(x.shape) < 1 and not may_be_empty:
        raise ValueError(f"{name} is empty: {tuple(x.shape)}")
    if x.shape[3] > MAX_HEAD_DIM:
        raise ValueError(f"head dim must be at most {MAX_HEAD_DIM}, got {x.shape[3]}")
    if x.stride(3) != 1 and x.shape[3] > 1:
        raise ValueError(f"{name} must be contiguous in its last dimension, got strides {x.stride()}")
