"""The public entry of reference attention: check the arguments, choose a backend, run it."""

import math
from collections.abc import Callable
from numbers import Real

import torch
from torch import Tensor

from ..pisa.api import (
    announce,
    autocast,
    check_scale,
    check_whole,
    choose_backend,
    validate_layout,
    validate_tensor,
)
from ..transforms import is_readable, refuse_forward_mode
from .naive import reference_naive

# Published forward rates on an H100, D = 128, long sequences: FlashAttention-3 638 and cuDNN 609-671 TFLOP/s against
# 389 of Triton's own attention. With one frame nothing is shared, so the library's kernels stand to win.
LIBRARY_HEAD_DIM, LIBRARY_TOKENS = 128, 8192
LIBRARY_REASON = "torch's own kernels are faster by published figures for one frame of 8192 tokens or more with D = 128"


def reference_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_ref: Tensor,
    v_ref: Tensor,
    *,
    num_frames: int,
    use_reference: Tensor | None = None,
    reference_bias: float | Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attention of every frame, or image, over [own ‖ reference]; the reference is stored once and asks nothing.

    It replaces repeating a reference's keys and values for every frame and concatenating them: the read mode of
    ReferenceNets (AnimateAnyone and its kin), "reference only", StyleAligned's shared attention.

    Args:
        q, k, v: `[B, num_frames·N, H, D]`, one floating dtype and device, `1 <= D <= 256`, any strides with a
            contiguous last dimension: the N tokens of each frame in turn, without the reference.
        k_ref, v_ref: `[B or 1, M, H, D]`, M from 0 up; shared by all videos where the first dimension is 1 or has
            stride 0.
        num_frames: F, at least 1.
        use_reference: bool `[B]`; where False the reference is left out, as if M were 0 (guidance's half without it).
        reference_bias: added to the scores of the reference, after the scale: a number, or a tensor `[]`, `[B]` or
            `[B, H]` without gradient. `log(s)` makes the reference count s times; -inf leaves it out. NaN and +inf
            are refused in a number and in a tensor on a CPU; on a GPU, and while compiling, a tensor's numbers are not
            looked at, since each call would wait for the device: they give NaN.
        scale: multiplies the scores; `D ** -0.5` when None.
        backend: `"auto"` (Triton on a supported GPU, but `"sdpa"` where torch's own kernels are faster by published
            figures; elsewhere `"sdpa"`), `"naive"`, `"sdpa"` or `"triton"`.

    Returns:
        `[B, num_frames·N, H, D]`, contiguous, in the dtype of `q`; under autocast in autocast's. Gradients reach all
        five tensors; those of the reference are summed over the frames, and over the videos that share it, in a fixed
        order.

    Raises:
        ValueError: an argument does not fit, or the backend cannot run here; the message names the value.
        NotImplementedError: forward-mode derivatives with another backend than `"naive"`.
    """
    _validate(q, k, v, k_ref, v_ref, num_frames, scale)
    bias = _score_bias(q, use_reference, reference_bias)
    name, reason = choose_reference_backend(q, num_frames, backend)
    announce(name, reason)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    inputs = autocast(q, k, v, *_stored_once(k_ref, v_ref))
    if name != "naive":
        refuse_forward_mode(*inputs)
    run: Callable[..., Tensor]
    if name == "triton":
        from .op import reference_triton as run  # imports Triton
    elif name == "sdpa":
        from .partials import reference_partials as run
    else:
        run = reference_naive
    return run(*inputs, bias, num_frames=num_frames, scale=scale)


def choose_reference_backend(q: Tensor, num_frames: int, backend: str = "auto") -> tuple[str, str]:
    """The backend that `reference_attention(q, ..., num_frames=num_frames, backend=backend)` runs, and why.

    Raises ValueError for a backend that does not exist or cannot run.
    """
    name, reason = choose_backend(q, backend)
    tokens, head_dim = q.shape[1], q.shape[3]
    is_long = num_frames == 1 and head_dim == LIBRARY_HEAD_DIM and tokens >= LIBRARY_TOKENS
    if backend == "auto" and name == "triton" and is_long:
        name, reason = "sdpa", LIBRARY_REASON
    return name, reason


def _stored_once(*references: Tensor) -> tuple[Tensor, ...]:
    """A reference expanded over the batch as the one that it is."""
    if all(x.shape[0] > 1 and x.stride(0) == 0 for x in references):
        return tuple(x[:1] for x in references)
    return references


def _score_bias(q: Tensor, use_reference: Tensor | None, reference_bias: float | Tensor | None) -> Tensor | None:
    """What is added to the reference's scores, `[B, H]` in fp32 (float64 for float64), -inf where it is left out."""
    if use_reference is None and reference_bias is None:
        return None
    batch, _, heads, _ = q.shape
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    if isinstance(reference_bias, Tensor):
        bias = _validated_bias(q, reference_bias).to(dtype)
        bias = bias.unsqueeze(-1) if bias.ndim == 1 else bias
        bias = bias.expand(batch, heads)
    else:
        if not isinstance(reference_bias, Real | None):
            raise ValueError(f"reference_bias must be a number or a tensor, got {str(reference_bias)[:60]!r}")
        value = 0.0 if reference_bias is None else float(reference_bias)
        _refuse_bias(value, value)
        bias = torch.full((batch, heads), value, dtype=dtype, device=q.device)
    if use_reference is None:
        return bias
    if not isinstance(use_reference, Tensor):
        raise ValueError(f"use_reference must be a bool tensor of shape [{batch}], got {type(use_reference).__name__}")
    if use_reference.dtype != torch.bool or tuple(use_reference.shape) != (batch,):
        raise ValueError(
            f"use_reference must be bool of shape [{batch}], one for each video, got {use_reference.dtype} "
            f"{list(use_reference.shape)}"
        )
    _same_device("use_reference", use_reference, q)
    return bias.masked_fill(~use_reference.unsqueeze(-1), -math.inf)


def _validated_bias(q: Tensor, bias: Tensor) -> Tensor:
    batch, _, heads, _ = q.shape
    if tuple(bias.shape) not in ((), (batch,), (batch, heads)):
        raise ValueError(f"reference_bias must be [], [{batch}] or [{batch}, {heads}], got {list(bias.shape)}")
    if not bias.is_floating_point() or bias.layout != torch.strided:
        raise ValueError(f"reference_bias must be floating and dense, got {bias.dtype}, {bias.layout}")
    if bias.requires_grad and torch.is_grad_enabled():
        raise ValueError("reference_bias has no gradient here: detach() it, or add it to the scores yourself")
    _same_device("reference_bias", bias, q)
    if bias.device.type == "cpu" and is_readable(bias):
        _refuse_bias(bias.max().item(), bias.tolist())
    return bias


def _refuse_bias(largest: float, shown: object) -> None:
    """The largest of numbers tells: a NaN among them is their maximum."""
    if not largest < math.inf:
        raise ValueError(f"reference_bias must be finite, or -inf to leave the reference out, got {str(shown)[:60]}")


def _same_device(name: str, x: Tensor, q: Tensor) -> None:
    if x.device != q.device:
        raise ValueError(f"{name} is on {x.device}, q is on {q.device}: move them to one device")


def _validate(
    q: Tensor, k: Tensor, v: Tensor, k_ref: Tensor, v_ref: Tensor, num_frames: int, scale: float | None
) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        validate_tensor(name, x, q)
    for name, x in (("k_ref", k_ref), ("v_ref", v_ref)):
        if not isinstance(x, Tensor):
            raise ValueError(f"{name} must be a tensor, got a {type(x).__name__}")
        if x.ndim != 4:
            raise ValueError(f"{name} must be [B or 1, M, H, D], got {x.ndim} dimensions: {tuple(x.shape)}")
        validate_layout(name, x, q, may_be_empty=True)
        if x.shape[2:] != q.shape[2:] or x.shape[0] not in (1, q.shape[0]):
            raise ValueError(
                f"{name} must be [{q.shape[0]} or 1, M, {q.shape[2]}, {q.shape[3]}] to fit q, got {list(x.shape)}"
            )
    if k_ref.shape != v_ref.shape:
        raise ValueError(f"v_ref has shape {tuple(v_ref.shape)}, k_ref has {tuple(k_ref.shape)}: they must be equal")
    check_whole(num_frames=num_frames)
    check_scale(scale)
    if num_frames < 1 or q.shape[1] % num_frames:
        raise ValueError(f"num_frames must be at least 1 and divide the {q.shape[1]} tokens of q, got {num_frames}")
