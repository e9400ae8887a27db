"""Backend "sdpa": attention over [frame ‖ reference] as partial attentions of torch's own kernels, merged exactly.

Every softmax over [frame ‖ reference] is split at the boundary. A partial over one side gives a normalised output
and a log-sum-exp; two of them merge into the exact whole. So the reference is never repeated, and its attention to
itself, the same for every frame, is computed once: (3F + 1) blocks of scores instead of 4F. On a CPU the frames'
own rows need no merging: [frame ‖ reference] lies there for a few frames and heads at a time.

Shapes: q, k, v `[B, T, H, D]` with `T = F·N + M`. Inside, one video at a time as views: frames `[G, H, N, D]` for a
group of G frames, reference `[1, H, M, D]`, log-sum-exp without the D.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .._ops import add_op_namespace_prefix
from ..transforms import differentiable, differentiable_once, register_batching
from .torch_kernels import KERNELS, Kernel, choose_kernel

# Tokens in one call: enough to keep the device busy, few enough to keep the partials' outputs small.
CPU_TOKENS, GPU_TOKENS = 1 << 9, 1 << 15
CPU_CACHE = 1 << 21  # bytes of keys and values side by side: what a core's second cache holds
CPU_QUERY_BLOCK = 256  # rows, at most, that a thread of torch's kernel takes at once


def pisa_partials(
    q: Tensor, k: Tensor, v: Tensor, *, num_frames: int, num_ref_tokens: int, scale: float, kernel: str = "auto"
) -> Tensor:
    """`pisa_attention` on any device, with no copy of the reference; `kernel` names one of `torch_kernels.KERNELS`."""
    return _attend(q, k, v, num_frames, num_ref_tokens, scale, kernel)[0]


def merge(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over the union of two sets of keys from the attention over each, in the precision of the lse.

    `out_a` is used up: the result takes its memory if its precision allows.
    """
    weight_b = torch.sigmoid(lse_b - lse_a).unsqueeze(-1)
    return out_a.to(lse_a.dtype).lerp_(out_b.to(lse_a.dtype), weight_b), torch.logaddexp(lse_a, lse_b)


def attend_frames(
    attend: Kernel, q: Tensor, k: Tensor, v: Tensor, k_ref: Tensor, v_ref: Tensor, scale: float,
    bias: Tensor | None = None, *, out: Tensor, lse: Tensor,
) -> None:  # fmt: skip
    """Writes the attention of one video's frames over [own ‖ reference], and its log-sum-exp.

    `bias` `[H]` is added to the reference's scores; without tokens of the reference the frames see themselves alone.
    """
    if q.device.type == "cpu" and (bias is None or k_ref.shape[2] == 0):
        return _attend_side_by_side(attend, q, k, v, k_ref, v_ref, scale, out, lse)
    for group in groups(q, k_ref.shape[2]):
        q_f, k_f, v_f, out_f = (x[group] for x in (q, k, v, out))
        lse[group] = _attend_and_merge(attend, q_f, k_f, v_f, k_ref, v_ref, scale, bias, out_f)


def _attend_and_merge(
    attend: Kernel, q: Tensor, k: Tensor, v: Tensor, k_ref: Tensor, v_ref: Tensor, scale: float,
    bias: Tensor | None, out: Tensor,
) -> Tensor:  # fmt: skip
    """A group of frames' attention by a partial over its own keys and one over the reference's; the log-sum-exp."""
    if q.device.type == "cpu":  # torch's kernel there reads the queries' rows once for every 512 keys
        q = q.contiguous()
    own, lse = attend.forward(q, k, v, scale)
    if k_ref.shape[2] == 0:
        out.copy_(own)
        return lse
    if own.dtype == lse.dtype:  # merged where it belongs, so that the reference's output takes its memory
        own = out.copy_(own)
    out_ref, lse_ref = (per_frame(x, len(q)) for x in attend.forward(one_sequence(q), k_ref, v_ref, scale))
    if bias is not None:
        lse_ref = lse_ref + bias.unsqueeze(-1)
    merged, lse = merge(own, lse, out_ref, lse_ref)
    out.copy_(merged)
    return lse


def _attend_side_by_side(
    attend: Kernel, q: Tensor, k: Tensor, v: Tensor, k_ref: Tensor, v_ref: Tensor, scale: float,
    out: Tensor, lse: Tensor,
) -> None:  # fmt: skip
    """The frames' attention with [own ‖ reference] in one small memory, where the next frames' keys replace the last's.

    Faster on a CPU than to merge: a head's keys lie in one piece and in the cache, and no partial is merged.
    """
    num_frames, num_heads, num_own, head_dim = k.shape
    tokens, at_once = num_own + k_ref.shape[2], min(frames_at_once(q, k_ref.shape[2]), num_frames)
    heads = _heads_at_once(at_once, num_own, 2 * tokens * head_dim * k.element_size())
    for some in (slice(start, start + heads) for start in range(0, num_heads, heads)):
        memory = k.new_empty(2, at_once, len(range(num_heads)[some]), tokens, head_dim)
        for x, reference in zip(memory, (k_ref, v_ref), strict=True):
            x[:, :, num_own:] = reference[:, some]
        for group in groups(q, k_ref.shape[2]):
            queries = q[group, some]
            keys, values = memory[:, : len(queries)]
            keys[:, :, :num_own], values[:, :, :num_own] = k[group, some], v[group, some]
            part, part_lse = attend.forward(queries, keys, values, scale)
            if (unseen := part_lse == -torch.inf).any():  # NaN, as of every softmax of -inf alone
                part = part.masked_fill(unseen.unsqueeze(-1), torch.nan)
            out[group, some], lse[group, some] = part, part_lse


def _heads_at_once(num_frames: int, num_tokens: int, head_bytes: int) -> int:
    """Heads whose keys and values fit in a core's cache, or more where the threads would have nothing to do."""
    blocks = num_frames * -(-num_tokens // CPU_QUERY_BLOCK)  # of one head, the work that is shared out
    return max(CPU_CACHE // (num_frames * head_bytes), -(-4 * torch.get_num_threads() // blocks), 1)


def attend_frames_backward(
    attend: Kernel, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    k_ref: Tensor, v_ref: Tensor, scale: float, bias: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of q (two terms: from the frames' own keys, from the reference's), k, v, k_ref and v_ref."""
    dq, dk, dv = attend.backward(grad, q, k, v, out, lse, scale)
    dq_ref, dk_ref, dv_ref = attend_reference_backward(attend, grad, q, out, lse, k_ref, v_ref, scale, bias)
    return dq, dq_ref, dk, dv, dk_ref, dv_ref


def attend_reference_backward(
    attend: Kernel, grad: Tensor, q: Tensor, out: Tensor, lse: Tensor, k_ref: Tensor, v_ref: Tensor, scale: float,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The reference's part of `attend_frames_backward`: its term of q's gradient, and those of k_ref and v_ref."""
    if k_ref.shape[2] == 0:
        return torch.zeros_like(q), torch.zeros_like(k_ref), torch.zeros_like(v_ref)
    lse = lse if bias is None else lse - bias.unsqueeze(-1)
    grad_rows, q_rows, out_rows, lse_rows = (one_sequence(x) for x in (grad, q, out, lse))
    dq_rows, dk_ref, dv_ref = attend.backward(grad_rows, q_rows, k_ref, v_ref, out_rows, lse_rows, scale)
    return per_frame(dq_rows, len(q)), dk_ref, dv_ref


@torch.library.custom_op(add_op_namespace_prefix("pisa_partials"), mutates_args=())
def partials_forward(
    q: Tensor, k: Tensor, v: Tensor, num_frames: int, num_ref_tokens: int, scale: float, kernel: str
) -> tuple[Tensor, Tensor]:
    """Output `[B, T, H, D]`, and the log-sum-exp of the frames' rows `[B, F, H, N]` for the backward."""
    attend = choose(kernel, q, k, v)
    out, frame_lse = empty_outputs(q, num_frames, num_ref_tokens)
    for video, tensors in enumerate(zip(q, k, v, out, strict=True)):
        parts = [split_reference(x, num_frames, num_ref_tokens) for x in tensors]
        (q_f, k_f, v_f, out_f), (q_r, k_r, v_r, out_r) = zip(*parts, strict=True)
        attend_frames(attend, q_f, k_f, v_f, k_r, v_r, scale, out=out_f, lse=frame_lse[video])
        if num_ref_tokens:
            ref_ref = attend.forward(q_r, k_r, v_r, scale)
            ref_sum = torch.zeros_like(out_r, dtype=frame_lse.dtype)
            for group in groups(k_f, num_ref_tokens):
                ref_frame = attend.forward(_for_frames(q_r, len(k_f[group])), k_f[group], v_f[group], scale)
                ref_sum += merge(*ref_frame, *ref_ref)[0].sum(dim=0)
            out_r.copy_(ref_sum / num_frames)
    return out, frame_lse


@partials_forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, num_frames: int, num_ref_tokens: int, scale: float, kernel: str
) -> tuple[Tensor, Tensor]:
    return empty_outputs(q, num_frames, num_ref_tokens)


@torch.library.custom_op(add_op_namespace_prefix("pisa_partials_backward"), mutates_args=())
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
    attend = choose(kernel, q, k, v)
    grads = _empty_gradients(q, k, v)
    for lse, *tensors in zip(frame_lse, grad_out.contiguous(), q, k, v, out, *grads, strict=True):
        frames, reference = zip(*(split_reference(x, len(lse), num_ref_tokens) for x in tensors), strict=True)
        _video_backward(attend, frames, reference, lse, scale)
    return grads


@partials_backward.register_fake
def _(grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_gradients(q, k, v)


def _video_backward(
    attend: Kernel, frames: tuple[Tensor, ...], reference: tuple[Tensor, ...], frame_lse: Tensor, scale: float
) -> None:
    """Write the gradients, the last three of `frames` and of `reference`, from what stands before them.

    In frame i's softmax the reference's attention to itself has the weight `w_i = exp(lse_rr - lse_i)`. Summed over
    the frames, its gradient is that of one attention that receives `Σ w_i grad` and had put out `Σ w_i out_i / Σ w_i`.
    """
    grad_r, q_r, k_r, v_r, _, *grads_r = reference
    has_reference = q_r.shape[2] > 0
    grad_r = grad_r / len(frame_lse)
    if has_reference:
        ref_ref = attend.forward(q_r, k_r, v_r, scale)
        weight = torch.zeros_like(ref_ref[1])
        dq_r, dk_r, dv_r, weighted_out = (torch.zeros_like(x, dtype=weight.dtype) for x in (q_r, k_r, v_r, q_r))
    for group in groups(frames[0], q_r.shape[2]):
        grad_f, q_f, k_f, v_f, out_f, *grads_f = (x[group] for x in frames)
        dq_own, dq_ref, dk_own, dv_own, dk, dv = attend_frames_backward(
            attend, grad_f, q_f, k_f, v_f, out_f, frame_lse[group], k_r, v_r, scale
        )
        if not has_reference:
            for grad, term in zip(grads_f, (dq_own, dk_own, dv_own), strict=True):
                grad.copy_(term)
            continue
        dk_r += dk
        dv_r += dv

        q_rows, grad_rows = (_for_frames(x, len(q_f)) for x in (q_r, grad_r))
        out_rows, lse_rows = merge(*attend.forward(q_rows, k_f, v_f, scale), *ref_ref)
        dq, dk, dv = attend.backward(grad_rows, q_rows, k_f, v_f, out_rows.to(q_r.dtype), lse_rows, scale)
        dq_r += dq.sum(dim=0)
        w = torch.exp(ref_ref[1] - lse_rows)
        weight += w.sum(dim=0)
        weighted_out += (w.unsqueeze(-1) * out_rows).sum(dim=0)
        for grad, *terms in zip(grads_f, (dq_own, dk_own, dv_own), (dq_ref, dk, dv), strict=True):
            torch.add(*terms, out=grad)
    if not has_reference:
        return

    weight = weight.unsqueeze(-1)
    out_rr = weighted_out / weight.clamp_min(torch.finfo(weight.dtype).tiny)
    of_ref = attend.backward((weight * grad_r).to(q_r.dtype), q_r, k_r, v_r, out_rr.to(q_r.dtype), ref_ref[1], scale)
    for grad, *terms in zip(grads_r, of_ref, (dq_r, dk_r, dv_r), strict=True):
        torch.add(*terms, out=grad)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    q, k, v, _, *ctx.options = inputs
    out, frame_lse = output
    ctx.mark_non_differentiable(frame_lse)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, out, frame_lse)


def _gradients(ctx: Any, grad_out: Tensor | None, *_: object) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return (None,) * 7
    gradients = _attend_backward(grad_out, *ctx.saved_tensors, *ctx.options)
    return *(x if needed else None for x, needed in zip(gradients, ctx.needs_input_grad, strict=False)), *[None] * 4


_attend_backward = differentiable_once(partials_backward, "the attention backend sdpa")
_attend = differentiable(partials_forward, _setup_context, _gradients)
register_batching(partials_forward)
register_batching(partials_backward)


def empty_outputs(q: Tensor, num_frames: int, num_ref_tokens: int) -> tuple[Tensor, Tensor]:
    """Room for an output like q and for the log-sum-exp of the frames' rows `[B, F, H, N]`."""
    batch, tokens, heads, _ = q.shape
    lse_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    lse_shape = (batch, num_frames, heads, (tokens - num_ref_tokens) // num_frames)
    return q.new_empty(q.shape), q.new_empty(lse_shape, dtype=lse_dtype)


def _empty_gradients(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def choose(name: str, q: Tensor, k: Tensor, v: Tensor) -> Kernel:
    """The kernel of that name, or with "auto" the fastest for q, k, v `[B, T, H, D]`."""
    return KERNELS[choose_kernel(*(x.transpose(1, 2) for x in (q, k, v))) if name == "auto" else name]


def split_reference(x: Tensor, num_frames: int, num_ref_tokens: int) -> tuple[Tensor, Tensor]:
    """Views of one video's `[T, H, D]`: frames `[F, H, N, D]` and reference `[1, H, M, D]`."""
    frames, reference = x.split([len(x) - num_ref_tokens, num_ref_tokens])
    return frames.unflatten(0, (num_frames, -1)).transpose(1, 2), reference.transpose(0, 1).unsqueeze(0)


def groups(frames: Tensor, num_ref_tokens: int) -> Iterator[slice]:
    """The frames `[F, H, N, D]` to hand to the library at once."""
    size = frames_at_once(frames, num_ref_tokens)
    return (slice(start, start + size) for start in range(0, len(frames), size))


def frames_at_once(frames: Tensor, num_ref_tokens: int) -> int:
    """How many frames a group of `groups` has, if there are as many."""
    tokens = CPU_TOKENS if frames.device.type == "cpu" else GPU_TOKENS
    return max(1, tokens // max(frames.shape[2], num_ref_tokens))


def one_sequence(x: Tensor) -> Tensor:
    """`[G, H, N, ...]` -> `[1, H, G·N, ...]`: the frames' rows one after the other."""
    return x.transpose(0, 1).flatten(1, 2).unsqueeze(0)


def per_frame(x: Tensor, num_frames: int) -> Tensor:
    """`[1, H, G·N, ...]` -> `[G, H, N, ...]`, the inverse of `one_sequence`."""
    return x[0].unflatten(1, (num_frames, -1)).transpose(0, 1)


def _for_frames(reference: Tensor, num_frames: int) -> Tensor:
    """`[1, H, M, D]` -> `[G, H, M, D]`, the same memory for every frame."""
    return reference.expand(num_frames, -1, -1, -1)
