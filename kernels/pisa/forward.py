"""The forward kernel: one launch over frame programs and reference programs.

    O_i   = softmax(Q_i   [K_i ‖ K_ref]ᵀ · scale) [V_i ‖ V_ref]
    O^i_r = softmax(Q_ref [K_i ‖ K_ref]ᵀ · scale) [V_i ‖ V_ref]
    O_ref = (1/F) Σ_i O^i_r                                       VideoMaker (arXiv 2412.19645), section 4.2

`Q_ref K_refᵀ` is the same for every frame, so a reference program attends to each set of keys once and by itself,

    O^i_r = a_i Ô_i + w_i Ô_F,    a_i = exp(lse_i - L_i),  w_i = exp(lse_F - L_i),  L_i = log(exp lse_i + exp lse_F)

where Ô_i, lse_i belong to Q_ref and K_i alone, and "frame F" means the reference. The launch does 3F + 1 blocks of N²
scores; the repeated reference costs 4F.

Letters: B batch, F frames, N tokens per frame, M reference tokens, T = F·N + M, H heads, D columns of a head, G groups
of frames; in tile shapes Q rows of queries, K rows of keys. Scores and log-sum-exp are in base 2, log2(e) being folded
into the scale.
"""

import triton
import triton.language as tl

from .primitives import (
    accumulate_rows,
    contiguous_pointer,
    dot_heads,
    group_bounds,
    head_pointer,
    load_tile,
    lse_offset,
    program_work,
    scale_tile,
    store_sum,
    store_tile,
    zero_tile,
)

INTEGERS = (
    "stride_q_batch", "stride_q_head", "stride_k_batch", "stride_k_head", "stride_v_batch", "stride_v_head",
    "num_reference_programs", "num_frames", "num_tokens", "num_ref_tokens", "num_groups",
)  # fmt: skip


@triton.jit
def add_in_log2(a, b):
    """`log2(2**a + 2**b)`, for finite a."""
    larger = tl.maximum(a, b)
    return larger + tl.log2(tl.exp2(a - larger) + tl.exp2(b - larger))


@triton.jit
def attend(
    row_max, row_sum, accumulator, q, keys, values, first_token, num_keys, scale_log2,
    STRIDE_K: tl.constexpr, STRIDE_V: tl.constexpr, D: tl.constexpr,
    QK_MAIN: tl.constexpr, QK_TAIL: tl.constexpr, PV_MAIN: tl.constexpr, PV_TAIL: tl.constexpr,
    BLOCK_K: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Continues an online softmax over the tokens from `first_token` to `first_token + num_keys`.

    The state is `row_max`, `row_sum` `[Q]` and the unnormalised `accumulator` `[Q, D]`; `q` is `[Q, D]`; `keys` and
    `values` point at token 0.
    """
    for start in range(0, num_keys, BLOCK_K):
        remaining = num_keys - start
        token = tl.cast(first_token + start, tl.int64)
        k = load_tile(keys + token * STRIDE_K, remaining, STRIDE_K, D, QK_MAIN, QK_TAIL, BLOCK_K, EVEN)  # [K, D]
        scores = dot_heads(q, k, QK_TAIL, PRECISION)  # [Q, K]
        if not EVEN:
            scores = tl.where((tl.arange(0, BLOCK_K) < remaining)[None, :], scores, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(scores, 1) * scale_log2)
        weights = tl.exp2(scores * scale_log2 - new_max[:, None])  # [Q, K]
        rescale = tl.exp2(row_max - new_max)
        row_sum = row_sum * rescale + tl.sum(weights, 1)
        row_max = new_max
        v = load_tile(values + token * STRIDE_V, remaining, STRIDE_V, D, PV_MAIN, PV_TAIL, BLOCK_K, EVEN)  # [K, D]
        accumulator = scale_tile(accumulator, rescale[:, None], PV_TAIL)
        accumulator = accumulate_rows(accumulator, weights, v, PV_TAIL, PRECISION)  # [Q, D]
    return row_max, row_sum, accumulator


@triton.jit(do_not_specialize=INTEGERS)
def pisa_forward(
    q, k, v, out, reference_outputs, lse, partials,
    stride_q_batch, stride_q_head, stride_k_batch, stride_k_head, stride_v_batch, stride_v_head,
    num_reference_programs, num_frames, num_tokens, num_ref_tokens, num_groups, scale_log2,
    STRIDE_Q: tl.constexpr, STRIDE_K: tl.constexpr, STRIDE_V: tl.constexpr, H: tl.constexpr, D: tl.constexpr,
    QK_MAIN: tl.constexpr, QK_TAIL: tl.constexpr, PV_MAIN: tl.constexpr, PV_TAIL: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr, ALIGN: tl.constexpr,
    PRECISION: tl.constexpr, SAVE: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Attention of one tile of queries: of one frame, or of the reference over a group of frames.

    Args:
        q, k, v: `[B, T, H, D]`, contiguous columns; STRIDE_Q, STRIDE_K, STRIDE_V are their strides from token to token,
            constants so that the addresses of a tile's rows differ by constants. ALIGN divides all strides.
        out: `[B, T, H, D]` contiguous.
        reference_outputs: `[B, F + 1, M, H, D]` contiguous, a_i Ô_i for every frame, then Ô_F; when SAVE.
        lse: fp32 `[B, H, F·N + (F + 1)·M]`: of the frames' rows; L_i of the reference's rows for every frame, then
            their lse_F; when SAVE.
        partials: fp32 `[B, G, 2, M, H, D]`, the reference programs' scratch: Σ a_i Ô_i / F over a group, and Ô_F.
            When SPLIT (G > 1) their results replace the first of the two: each group's share of O_ref.
    """
    is_reference, tile, head, batch, index = program_work(
        num_reference_programs, num_frames, num_tokens, num_ref_tokens, num_groups, H, BLOCK_Q
    )
    frame_tokens = num_frames * num_tokens
    keys = head_pointer(k, batch, 0, head, stride_k_batch, STRIDE_K, stride_k_head, ALIGN)
    values = head_pointer(v, batch, 0, head, stride_v_batch, STRIDE_V, stride_v_head, ALIGN)

    # The tile's first row and token, and how many rows there are from it on.
    first_row = tile * BLOCK_Q
    token = tl.where(is_reference, frame_tokens, index * num_tokens) + first_row
    num_rows = tl.where(is_reference, num_ref_tokens, num_tokens) - first_row
    rows = tl.arange(0, BLOCK_Q)
    in_range = rows < num_rows
    query_pointer = head_pointer(q, batch, token, head, stride_q_batch, STRIDE_Q, stride_q_head, ALIGN)
    q_tile = load_tile(query_pointer, num_rows, STRIDE_Q, D, QK_MAIN, QK_TAIL, BLOCK_Q, EVEN)  # [Q, D]

    # Segments of keys: the reference, then the frame or the frames of the group.
    first_frame, last_frame = group_bounds(index, num_groups, num_frames)
    first_frame = tl.where(is_reference, first_frame, index)
    num_segments = tl.where(is_reference, last_frame - first_frame, 1) + 1

    row_max = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    row_sum = tl.zeros((BLOCK_Q,), tl.float32)
    accumulator = zero_tile(BLOCK_Q, PV_MAIN, PV_TAIL)
    reference_lse = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    reference_weight = tl.zeros((BLOCK_Q,), tl.float32)  # Σ w_i
    slot = (batch * num_groups + index) * 2  # of the sum Σ a_i Ô_i / F; Ô_F has the next one
    lse_pointer = lse + lse_offset(batch, head, num_frames, num_tokens, num_ref_tokens, H) + rows
    for segment in tl.range(num_segments, disable_licm=True):
        frame = tl.where(segment == 0, num_frames, first_frame + segment - 1)
        row_max, row_sum, accumulator = attend(
            row_max, row_sum, accumulator, q_tile, keys, values,
            frame * num_tokens, tl.where(segment == 0, num_ref_tokens, num_tokens), scale_log2,
            STRIDE_K, STRIDE_V, D, QK_MAIN, QK_TAIL, PV_MAIN, PV_TAIL, BLOCK_K, EVEN, PRECISION,
        )  # fmt: skip
        if is_reference:
            own_lse = row_max + tl.log2(row_sum)
            joint_lse = add_in_log2(own_lse, reference_lse)
            share = tl.exp2(own_lse - joint_lse) / row_sum
            output = scale_tile(accumulator, share[:, None], PV_TAIL)  # a_i Ô_i, and first Ô_F
            if SAVE and (segment > 0 or index == 0):
                item = batch * (num_frames + 1) + frame
                pointer = contiguous_pointer(reference_outputs, item, first_row, head, num_ref_tokens, H, D)
                store_tile(pointer, output, num_rows, H * D, D, PV_MAIN, PV_TAIL, EVEN)
                tl.store(lse_pointer + frame_tokens + frame * num_ref_tokens + first_row, joint_lse, mask=in_range)
            # Sums wait in memory: a wide head has no registers for a second accumulator.
            this_slot = tl.where(segment == 0, slot + 1, slot)
            pointer = contiguous_pointer(partials, this_slot, first_row, head, num_ref_tokens, H, D)
            output = scale_tile(output, tl.where(segment == 0, 1.0, 1.0 / num_frames), PV_TAIL)
            store_sum(pointer, output, pointer, segment > 1, num_rows, H * D, D, PV_MAIN, PV_TAIL, EVEN)
            reference_weight += tl.exp2(reference_lse - joint_lse)
            reference_lse = tl.where(segment == 0, own_lse, reference_lse)
            tl.debug_barrier()
            row_max = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
            row_sum = tl.zeros((BLOCK_Q,), tl.float32)
            accumulator = zero_tile(BLOCK_Q, PV_MAIN, PV_TAIL)

    out_pointer = contiguous_pointer(out, batch, token, head, frame_tokens + num_ref_tokens, H, D)
    if is_reference:
        sum_pointer = contiguous_pointer(partials, slot, first_row, head, num_ref_tokens, H, D)
        own_pointer = contiguous_pointer(partials, slot + 1, first_row, head, num_ref_tokens, H, D)
        own = load_tile(own_pointer, num_rows, H * D, D, PV_MAIN, PV_TAIL, BLOCK_Q, EVEN)
        own = scale_tile(own, reference_weight[:, None] / num_frames, PV_TAIL)
        destination = sum_pointer if SPLIT else out_pointer
        store_sum(destination, own, sum_pointer, True, num_rows, H * D, D, PV_MAIN, PV_TAIL, EVEN)
    else:
        output = scale_tile(accumulator, 1.0 / row_sum[:, None], PV_TAIL)
        store_tile(out_pointer, output, num_rows, H * D, D, PV_MAIN, PV_TAIL, EVEN)
        if SAVE:
            tl.store(lse_pointer + token, row_max + tl.log2(row_sum), mask=in_range)
