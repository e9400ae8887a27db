"""Backend "sdpa": PISA as partial attentions of torch's own kernels, merged exactly by their log-sum-exp.

Every softmax over [frame ‖ reference] is split at the boundary. A partial over one side gives a normalised output
and a log-sum-exp; two of them merge into the exact whole. So the reference is never repeated, and its attention to
itself, the same for every frame, is computed once: (3F + 1) blocks of scores instead of 4F.

Shapes: q, k, v `[B, T, H, D]` with `T = F·N + M`. Inside, one video at a time as views: frames `[G, H, N, D]` for a
group of G frames, reference `[1, H, M, D]`, log-sum-exp without the D.
"""

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .torch_kernels import KERNELS, Kernel, choose_kernel

# Tokens in one call: enough to keep the device busy, few enough to keep the partials' outputs small.
CPU_TOKENS, GPU_TOKENS = 1 << 9, 1 << 15


def pisa_partials(
    q: Tensor, k: Tensor, v: Tensor, *, num_frames: int, num_ref_tokens: int, scale: float, kernel: str = "auto"
) -> Tensor:
    """`pisa_attention` on any device, with no copy of the reference; `kernel` names one of `torch_kernels.KERNELS`."""
    if num_ref_tokens == 0:
        q_f, k_f, v_f = (x.unflatten(1, (num_frames, -1)).flatten(0, 1).transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q_f, k_f, v_f, scale=scale)
        return out.transpose(1, 2).reshape(q.shape).contiguous()
    return partials_forward(q, k, v, num_frames, num_ref_tokens, scale, kernel)[0]


def merge(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over the union of two sets of keys from the attention over each, in the precision of the lse."""
    weight_b = torch.sigmoid(lse_b - lse_a).unsqueeze(-1)
    return torch.lerp(out_a.to(lse_a.dtype), out_b.to(lse_a.dtype), weight_b), torch.logaddexp(lse_a, lse_b)


@torch.library.custom_op("videomaker::pisa_partials", mutates_args=())
def partials_forward(
    q: Tensor, k: Tensor, v: Tensor, num_frames: int, num_ref_tokens: int, scale: float, kernel: str
) -> tuple[Tensor, Tensor]:
    """Output `[B, T, H, D]`, and the log-sum-exp of the frames' rows `[B, F, H, N]` for the backward."""
    attend = _kernel(kernel, q, k, v).forward
    out, frame_lse = _empty_outputs(q, num_frames, num_ref_tokens)
    for video, tensors in enumerate(zip(q, k, v, out, strict=True)):
        frames, (q_r, k_r, v_r, out_r) = _split(tensors, num_frames, num_ref_tokens)
        ref_ref = attend(q_r, k_r, v_r, scale)
        ref_sum = torch.zeros_like(out_r, dtype=frame_lse.dtype)
        for group in _groups(frames[0], num_ref_tokens):
            q_f, k_f, v_f, out_f = (x[group] for x in frames)
            frame_ref = (_per_frame(x, len(q_f)) for x in attend(_one_sequence(q_f), k_r, v_r, scale))
            merged, frame_lse[video, group] = merge(*attend(q_f, k_f, v_f, scale), *frame_ref)
            out_f.copy_(merged)
            ref_frame = attend(_for_frames(q_r, len(q_f)), k_f, v_f, scale)
            ref_sum += merge(*ref_frame, *ref_ref)[0].sum(dim=0)
        out_r.copy_(ref_sum / num_frames)
    return out, frame_lse


@partials_forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, num_frames: int, num_ref_tokens: int, scale: float, kernel: str
) -> tuple[Tensor, Tensor]:
    return _empty_outputs(q, num_frames, num_ref_tokens)


@torch.library.custom_op("videomaker::pisa_partials_backward", mutates_args=())
def partials_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    frame_lse: Tensor,
    num_ref_tokens: int,
    scale: float,
    kernel: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, contiguous `[B, T, H, D]`.

    What the reference receives from each frame is computed again, not kept: it is F·M·H·D large.
    """
    attend = _kernel(kernel, q, k, v)
    grads = _empty_gradients(q, k, v)
    for lse, *tensors in zip(frame_lse, grad_out.contiguous(), q, k, v, out, *grads, strict=True):
        frames, reference = _split(tensors, len(lse), num_ref_tokens)
        _video_backward(attend, frames, reference, lse, scale)
    return grads


@partials_backward.register_fake
def _(grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_gradients(q, k, v)


def _video_backward(
    attend: Kernel, frames: list[Tensor], reference: list[Tensor], frame_lse: Tensor, scale: float
) -> None:
    """Write the gradients, the last three of `frames` and of `reference`, from what stands before them.

    In frame i's softmax the reference's attention to itself has the weight `w_i = exp(lse_rr - lse_i)`. Summed over
    the frames, its gradient is that of one attention that receives `Σ w_i grad` and had put out `Σ w_i out_i / Σ w_i`.
    """
    grad_r, q_r, k_r, v_r, _, *grads_r = reference
    grad_r = grad_r / len(frame_lse)
    ref_ref = attend.forward(q_r, k_r, v_r, scale)
    weight = torch.zeros_like(ref_ref[1])
    dq_r, dk_r, dv_r, weighted_out = (torch.zeros_like(x, dtype=weight.dtype) for x in (q_r, k_r, v_r, q_r))
    for group in _groups(frames[0], q_r.shape[2]):
        grad_f, q_f, k_f, v_f, out_f, *grads_f = (x[group] for x in frames)
        lse_f = frame_lse[group]
        of_frames = attend.backward(grad_f, q_f, k_f, v_f, out_f, lse_f, scale)
        grad_rows, q_rows, out_rows, lse_rows = (_one_sequence(x) for x in (grad_f, q_f, out_f, lse_f))
        dq_rows, dk, dv = attend.backward(grad_rows, q_rows, k_r, v_r, out_rows, lse_rows, scale)
        dk_r += dk
        dv_r += dv

        q_rows, grad_rows = (_for_frames(x, len(q_f)) for x in (q_r, grad_r))
        out_rows, lse_rows = merge(*attend.forward(q_rows, k_f, v_f, scale), *ref_ref)
        dq, dk, dv = attend.backward(grad_rows, q_rows, k_f, v_f, out_rows.to(q_r.dtype), lse_rows, scale)
        dq_r += dq.sum(dim=0)
        w = torch.exp(ref_ref[1] - lse_rows)
        weight += w.sum(dim=0)
        weighted_out += (w.unsqueeze(-1) * out_rows).sum(dim=0)
        for grad, *terms in zip(grads_f, of_frames, (_per_frame(dq_rows, len(q_f)), dk, dv), strict=True):
            torch.add(*terms, out=grad)

    weight = weight.unsqueeze(-1)
    out_rr = weighted_out / weight.clamp_min(torch.finfo(weight.dtype).tiny)
    of_ref = attend.backward((weight * grad_r).to(q_r.dtype), q_r, k_r, v_r, out_rr.to(q_r.dtype), ref_ref[1], scale)
    for grad, *terms in zip(grads_r, of_ref, (dq_r, dk_r, dv_r), strict=True):
        torch.add(*terms, out=grad)


def _setup_context(ctx: object, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    q, k, v, _, *ctx.options = inputs
    ctx.save_for_backward(q, k, v, *output)


def _backward(ctx: object, grad_out: Tensor, grad_lse: Tensor) -> tuple:
    return *partials_backward(grad_out, *ctx.saved_tensors, *ctx.options), None, None, None, None


partials_forward.register_autograd(_backward, setup_context=_setup_context)


def _empty_outputs(q: Tensor, num_frames: int, num_ref_tokens: int) -> tuple[Tensor, Tensor]:
    batch, tokens, heads, _ = q.shape
    lse_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    lse_shape = (batch, num_frames, heads, (tokens - num_ref_tokens) // num_frames)
    return q.new_empty(q.shape), q.new_empty(lse_shape, dtype=lse_dtype)


def _empty_gradients(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _kernel(name: str, q: Tensor, k: Tensor, v: Tensor) -> Kernel:
    return KERNELS[choose_kernel(*(x.transpose(1, 2) for x in (q, k, v))) if name == "auto" else name]


def _split(tensors: Iterable[Tensor], num_frames: int, num_ref_tokens: int) -> tuple[list[Tensor], list[Tensor]]:
    """Views of one video's `[T, H, D]` tensors: frames `[F, H, N, D]` and reference `[1, H, M, D]`."""
    frames, reference = [], []
    for x in tensors:
        frames.append(x[:-num_ref_tokens].unflatten(0, (num_frames, -1)).transpose(1, 2))
        reference.append(x[-num_ref_tokens:].transpose(0, 1).unsqueeze(0))
    return frames, reference


def _groups(frames: Tensor, num_ref_tokens: int) -> Iterator[slice]:
    """The frames to hand to the library at once."""
    num_frames, _, frame_tokens, _ = frames.shape
    tokens = CPU_TOKENS if frames.device.type == "cpu" else GPU_TOKENS
    size = max(1, tokens // max(frame_tokens, num_ref_tokens))
    return (slice(start, start + size) for start in range(0, num_frames, size))


def _for_frames(reference: Tensor, num_frames: int) -> Tensor:
    """`[1, H, M, D]` -> `[G, H, M, D]`, the same memory for every frame."""
    return reference.expand(num_frames, -1, -1, -1)


def _one_sequence(x: Tensor) -> Tensor:
    """`[G, H, N, ...]` -> `[1, H, G·N, ...]`: the frames' rows one after the other."""
    return x.transpose(0, 1).flatten(1, 2).unsqueeze(0)


def _per_frame(x: Tensor, num_frames: int) -> Tensor:
    """`[1, H, G·N, ...]` -> `[G, H, N, ...]`, the inverse of `_one_sequence`."""
    return x[0].unflatten(1, (num_frames, -1)).transpose(0, 1)
