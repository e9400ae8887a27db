"""The forward kernel: one launch over frame programs and reference programs.

    O_i   = softmax(Q_i   [K_i ‖ K_ref]ᵀ · scale) [V_i ‖ V_ref]
    O^i_r = softmax(Q_ref [K_i ‖ K_ref]ᵀ · scale) [V_i ‖ V_ref]
    O_ref = (1/F) Σ_i O^i_r                                       VideoMaker (arXiv 2412.19645), section 4.2

`Q_ref K_refᵀ` is the same for every frame: a reference program computes that partial softmax once and continues from it
for each frame, so the kernel does 3F + 1 blocks of N² scores where the repeated reference costs 4F.

Letters: B batch, F frames, N tokens per frame, M reference tokens, T = F·N + M, H heads, D columns of a head, G groups
of frames; in tile shapes Q rows of queries, K rows of keys. Scores and log-sum-exp are in base 2, log2(e) being folded
into the scale.
"""

import triton
import triton.language as tl

from .primitives import (
    accumulate_rows,
    add_tiles,
    aligned,
    contiguous_pointer,
    dot_heads,
    group_bounds,
    head_pointer,
    load_tile,
    reference_or_frame,
    scale_tile,
    store_tile,
    zero_tile,
)

INTEGERS = (
    "stride_q_batch", "stride_q_token", "stride_q_head",
    "stride_k_batch", "stride_k_token", "stride_k_head",
    "stride_v_batch", "stride_v_token", "stride_v_head",
    "num_reference_programs", "num_heads", "num_frames", "num_tokens", "num_reference", "num_groups",
)  # fmt: skip


@triton.jit
def attend(
    row_max, row_sum, accumulator, q, keys, values, first_token, num_keys, stride_k, stride_v, scale_log2,
    D: tl.constexpr, QK_MAIN: tl.constexpr, QK_TAIL: tl.constexpr, PV_MAIN: tl.constexpr, PV_TAIL: tl.constexpr,
    BLOCK_K: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Continues an online softmax over the tokens from `first_token` to `first_token + num_keys`.

    The state is `row_max`, `row_sum` `[Q]` and the unnormalised `accumulator` `[Q, D]`; `q` is `[Q, D]`; `keys` and
    `values` point at token 0.
    """
    for start in range(0, num_keys, BLOCK_K):
        remaining = num_keys - start
        token = tl.cast(first_token + start, tl.int64)
        k = load_tile(keys + token * stride_k, remaining, stride_k, D, QK_MAIN, QK_TAIL, BLOCK_K, EVEN)  # [K, D]
        scores = dot_heads(q, k, QK_TAIL, PRECISION)  # [Q, K]
        if not EVEN:
            scores = tl.where((tl.arange(0, BLOCK_K) < remaining)[None, :], scores, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(scores, 1) * scale_log2)
        weights = tl.exp2(scores * scale_log2 - new_max[:, None])  # [Q, K]
        rescale = tl.exp2(row_max - new_max)
        row_sum = row_sum * rescale + tl.sum(weights, 1)
        row_max = new_max
        v = load_tile(values + token * stride_v, remaining, stride_v, D, PV_MAIN, PV_TAIL, BLOCK_K, EVEN)  # [K, D]
        accumulator = scale_tile(accumulator, rescale[:, None], PV_TAIL)
        accumulator = accumulate_rows(accumulator, weights, v, PV_TAIL, PRECISION)  # [Q, D]
    return row_max, row_sum, accumulator


@triton.jit(do_not_specialize=INTEGERS)
def pisa_forward(
    q, k, v, out, reference_outputs, lse, partials,
    stride_q_batch, stride_q_token, stride_q_head,
    stride_k_batch, stride_k_token, stride_k_head,
    stride_v_batch, stride_v_token, stride_v_head,
    num_reference_programs, num_heads, num_frames, num_tokens, num_reference, num_groups, scale_log2,
    D: tl.constexpr, QK_MAIN: tl.constexpr, QK_TAIL: tl.constexpr, PV_MAIN: tl.constexpr, PV_TAIL: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr, ALIGN: tl.constexpr,
    PRECISION: tl.constexpr, SAVE: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Attention of one tile of queries, of the reference over a group of frames or of one frame.

    Args:
        q, k, v: `[B, T, H, D]`, any strides that are multiples of ALIGN, contiguous columns.
        out: `[B, T, H, D]` contiguous.
        reference_outputs: `[B, F, M, H, D]` contiguous, O^i_r; written when SAVE.
        lse: fp32 `[B, H, F·N + F·M]`, log-sum-exp of the frames' rows, then of the reference's per frame; when SAVE.
        partials: fp32 `[B, G, M, H, D]`: the reference programs' scratch, and when SPLIT (G > 1) their results, each
            group of frames' share of O_ref.
    """
    is_reference, tile, head, batch, index = reference_or_frame(
        num_reference_programs, num_heads, num_frames, num_tokens, num_reference, num_groups, BLOCK_Q
    )
    frame_tokens = num_frames * num_tokens
    stride_q = aligned(stride_q_token, ALIGN)
    stride_k = aligned(stride_k_token, ALIGN)
    stride_v = aligned(stride_v_token, ALIGN)
    keys = head_pointer(k, batch, 0, head, stride_k_batch, stride_k, stride_k_head, ALIGN)
    values = head_pointer(v, batch, 0, head, stride_v_batch, stride_v, stride_v_head, ALIGN)

    # The tile's first token and first row, and how many rows there are from it on.
    first_row = tile * BLOCK_Q
    token = tl.where(is_reference, frame_tokens, index * num_tokens) + first_row
    num_rows = tl.where(is_reference, num_reference, num_tokens) - first_row
    query_pointer = head_pointer(q, batch, token, head, stride_q_batch, stride_q, stride_q_head, ALIGN)
    q_tile = load_tile(query_pointer, num_rows, stride_q, D, QK_MAIN, QK_TAIL, BLOCK_Q, False)  # [Q, D]

    stride_out = num_heads * D
    out_pointer = contiguous_pointer(out, batch, token, head, frame_tokens + num_reference, num_heads, D)
    lse_pointer = lse + (tl.cast(batch, tl.int64) * num_heads + head) * (frame_tokens + num_frames * num_reference)
    rows = tl.arange(0, BLOCK_Q)

    reference_max, reference_sum, accumulator = attend(
        tl.full((BLOCK_Q,), float("-inf"), tl.float32), tl.zeros((BLOCK_Q,), tl.float32),
        zero_tile(BLOCK_Q, PV_MAIN, PV_TAIL), q_tile, keys, values,
        frame_tokens, num_reference, stride_k, stride_v, scale_log2,
        D, QK_MAIN, QK_TAIL, PV_MAIN, PV_TAIL, BLOCK_K, EVEN, PRECISION,
    )  # fmt: skip
    if is_reference:
        # The ref/ref state waits in memory: three accumulators do not fit into the registers of a wide head.
        group = batch * num_groups + index
        partial_pointer = contiguous_pointer(partials, group, first_row, head, num_reference, num_heads, D)
        store_tile(partial_pointer, accumulator, num_rows, stride_out, D, PV_MAIN, PV_TAIL)
        tl.debug_barrier()
        average = zero_tile(BLOCK_Q, PV_MAIN, PV_TAIL)
        first_frame, last_frame = group_bounds(index, num_groups, num_frames)
        for frame in range(first_frame, last_frame):
            accumulator = load_tile(partial_pointer, num_rows, stride_out, D, PV_MAIN, PV_TAIL, BLOCK_Q, False)
            row_max, row_sum, accumulator = attend(
                reference_max, reference_sum, accumulator, q_tile, keys, values,
                frame * num_tokens, num_tokens, stride_k, stride_v, scale_log2,
                D, QK_MAIN, QK_TAIL, PV_MAIN, PV_TAIL, BLOCK_K, EVEN, PRECISION,
            )  # fmt: skip
            output = scale_tile(accumulator, 1.0 / row_sum[:, None], PV_TAIL)
            average = add_tiles(average, output, PV_TAIL)
            if SAVE:
                item = batch * num_frames + frame
                output_pointer = contiguous_pointer(
                    reference_outputs, item, first_row, head, num_reference, num_heads, D
                )
                store_tile(output_pointer, output, num_rows, stride_out, D, PV_MAIN, PV_TAIL)
                lse_row = frame_tokens + frame * num_reference + first_row
                tl.store(lse_pointer + lse_row + rows, row_max + tl.log2(row_sum), mask=rows < num_rows)
        average = scale_tile(average, 1.0 / num_frames, PV_TAIL)
        if SPLIT:
            tl.debug_barrier()
            store_tile(partial_pointer, average, num_rows, stride_out, D, PV_MAIN, PV_TAIL)
        else:
            store_tile(out_pointer, average, num_rows, stride_out, D, PV_MAIN, PV_TAIL)
    else:
        row_max, row_sum, accumulator = attend(
            reference_max, reference_sum, accumulator, q_tile, keys, values,
            index * num_tokens, num_tokens, stride_k, stride_v, scale_log2,
            D, QK_MAIN, QK_TAIL, PV_MAIN, PV_TAIL, BLOCK_K, EVEN, PRECISION,
        )  # fmt: skip
        output = scale_tile(accumulator, 1.0 / row_sum[:, None], PV_TAIL)
        store_tile(out_pointer, output, num_rows, stride_out, D, PV_MAIN, PV_TAIL)
        if SAVE:
            tl.store(lse_pointer + token + rows, row_max + tl.log2(row_sum), mask=rows < num_rows)
