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
    INTEGERS,
    accumulate_rows,
    contiguous_pointer,
    dot_heads,
    group_bounds,
    head_pointer,
    load_tile,
    log2_bias,
    lse_offset,
    program_work,
    scale_tile,
    segment_pointer,
    store_sum,
    store_tile,
    zero_tile,
)


@triton.jit
def add_in_log2(a, b):
    """`log2(2**a + 2**b)`, for finite a."""
    larger = tl.maximum(a, b)
    return larger + tl.log2(tl.exp2(a - larger) + tl.exp2(b - larger))


@triton.jit
def zero_sum(BLOCK: tl.constexpr, SUM_WIDTH: tl.constexpr):
    """A row sum to begin with, `[BLOCK]`, or as SUM_WIDTH equal columns where the matrix unit adds."""
    if SUM_WIDTH == 0:
        return tl.zeros((BLOCK,), tl.float32)
    else:
        return tl.zeros((BLOCK, SUM_WIDTH), tl.float32)


@triton.jit
def row_total(row_sum, SUM_WIDTH: tl.constexpr):
    """The row sum as `[BLOCK]`."""
    if SUM_WIDTH == 0:
        return row_sum
    else:
        return tl.max(row_sum, 1)


@triton.jit
def attend(
    row_max, row_sum, accumulator, q, keys, values, num_keys, scale_log2, bias,
    STRIDE_K: tl.constexpr, STRIDE_V: tl.constexpr, D: tl.constexpr,
    QK_MAIN: tl.constexpr, QK_TAIL: tl.constexpr, PV_MAIN: tl.constexpr, PV_TAIL: tl.constexpr,
    BLOCK_K: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr, REF_BIAS: tl.constexpr,
    SUM_WIDTH: tl.constexpr,
):  # fmt: skip
    """Continues an online softmax over `num_keys` tokens, the first of which `keys` and `values` point at.

    The state is `row_max` `[Q]`, `row_sum` (see `zero_sum`) and the unnormalised `accumulator` `[Q, D]`; `q` is
    `[Q, D]`. `bias`, a scalar in base 2, is added to all scores when REF_BIAS.
    """
    for start in range(0, num_keys, BLOCK_K):
        remaining = num_keys - start
        token = tl.cast(start, tl.int64)
        k = load_tile(keys + token * STRIDE_K, remaining, STRIDE_K, D, QK_MAIN, QK_TAIL, BLOCK_K, EVEN)  # [K, D]
        scores = dot_heads(q, k, QK_TAIL, PRECISION)  # [Q, K]
        if not EVEN:
            scores = tl.where((tl.arange(0, BLOCK_K) < remaining)[None, :], scores, float("-inf"))
        tile_max = tl.max(scores, 1) * scale_log2
        if REF_BIAS:
            tile_max += bias
        new_max = tl.maximum(row_max, tile_max)
        shift = new_max
        if REF_BIAS:
            shift -= bias
        weights = tl.exp2(scores * scale_log2 - shift[:, None])  # [Q, K]
        rescale = tl.exp2(row_max - new_max)
        if SUM_WIDTH == 0:
            row_sum = row_sum * rescale + tl.sum(weights, 1)
        row_max = new_max
        v = load_tile(values + token * STRIDE_V, remaining, STRIDE_V, D, PV_MAIN, PV_TAIL, BLOCK_K, EVEN)  # [K, D]
        accumulator = scale_tile(accumulator, rescale[:, None], PV_TAIL)
        accumulator = accumulate_rows(accumulator, weights, v, PV_TAIL, PRECISION)  # [Q, D]
        if SUM_WIDTH > 0:
            ones = tl.full((BLOCK_K, SUM_WIDTH), 1.0, v[0].dtype)
            row_sum = tl.dot(weights.to(v[0].dtype), ones, row_sum * rescale[:, None], input_precision=PRECISION)
    return row_max, row_sum, accumulator


@triton.jit(do_not_specialize=INTEGERS)
def pisa_forward(
    q, k, v, k_ref, v_ref, ref_bias, out, reference_outputs, lse, partials,
    stride_q_batch, stride_q_head, stride_k_batch, stride_k_head, stride_v_batch, stride_v_head,
    stride_k_ref_batch, stride_k_ref_head, stride_v_ref_batch, stride_v_ref_head,
    num_reference_programs, num_frames, num_tokens, num_ref_tokens, num_groups, scale_log2,
    STRIDE_Q: tl.constexpr, STRIDE_K: tl.constexpr, STRIDE_V: tl.constexpr, H: tl.constexpr, D: tl.constexpr,
    QK_MAIN: tl.constexpr, QK_TAIL: tl.constexpr, PV_MAIN: tl.constexpr, PV_TAIL: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
    REF_QUERIES: tl.constexpr, REF_BIAS: tl.constexpr, SAVE: tl.constexpr, SPLIT: tl.constexpr,
    SUM_WIDTH: tl.constexpr,
):  # fmt: skip
    """Attention of one tile of queries: of one frame, or of the reference over a group of frames.

    Without REF_QUERIES the reference is attended to and asks nothing: T = F·N and no program is the reference's.

    Args:
        q, k, v: `[B, T, H, D]`, contiguous columns; STRIDE_Q, STRIDE_K, STRIDE_V are their strides from token to token,
            constants so that the addresses of a tile's rows differ by constants. ALIGN divides all strides.
        k_ref, v_ref: `[B, M, H, D]`, tokens STRIDE_K and STRIDE_V apart; the stride of the batch may be 0.
        ref_bias: fp32 `[B, H]`, added to the reference's scores, -inf where it is left out; when REF_BIAS.
        out: `[B, T, H, D]` contiguous.
        reference_outputs: `[B, F + 1, M, H, D]` contiguous, a_i Ô_i for every frame, then Ô_F; when SAVE.
        lse: fp32 `[B, H, F·N + (F + 1)·M]`: of the frames' rows; L_i of the reference's rows for every frame, then
            their lse_F; when SAVE. Without REF_QUERIES the frames' rows alone.
        partials: fp32 `[B, G, 2, M, H, D]`, the reference programs' scratch: Σ a_i Ô_i / F over a group, and Ô_F.
            When SPLIT (G > 1) their results replace the first of the two: each group's share of O_ref.
        SUM_WIDTH: 0, or the columns in which the matrix unit adds up the weights of a row.
    """
    is_reference, tile, head, batch, index = program_work(
        num_reference_programs, num_frames, num_tokens, num_ref_tokens, num_groups, H, BLOCK_Q
    )
    frame_tokens = num_frames * num_tokens
    num_ref_rows = num_ref_tokens if REF_QUERIES else 0

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
    bias = log2_bias(ref_bias, batch, head, H, REF_BIAS)

    row_max = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    row_sum = zero_sum(BLOCK_Q, SUM_WIDTH)
    accumulator = zero_tile(BLOCK_Q, PV_MAIN, PV_TAIL)
    reference_lse = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    reference_weight = tl.zeros((BLOCK_Q,), tl.float32)  # Σ w_i
    slot = (batch * num_groups + index) * 2  # of the sum Σ a_i Ô_i / F; Ô_F has the next one
    lse_pointer = lse + lse_offset(batch, head, num_frames, num_tokens, num_ref_rows, H) + rows
    for segment in tl.range(num_segments, disable_licm=True):
        frame = tl.where(segment == 0, num_frames, first_frame + segment - 1)
        keys = segment_pointer(
            k, k_ref, segment == 0, batch, frame * num_tokens, 0, head,
            stride_k_batch, stride_k_head, stride_k_ref_batch, stride_k_ref_head, STRIDE_K, ALIGN,
        )  # fmt: skip
        values = segment_pointer(
            v, v_ref, segment == 0, batch, frame * num_tokens, 0, head,
            stride_v_batch, stride_v_head, stride_v_ref_batch, stride_v_ref_head, STRIDE_V, ALIGN,
        )  # fmt: skip
        num_keys = tl.where(segment == 0, num_ref_tokens, num_tokens)
        if REF_BIAS:
            num_keys = tl.where((segment == 0) & (bias == float("-inf")), 0, num_keys)
        row_max, row_sum, accumulator = attend(
            row_max, row_sum, accumulator, q_tile, keys, values, num_keys, scale_log2,
            tl.where(segment == 0, bias, 0.0) if REF_BIAS else 0.0,
            STRIDE_K, STRIDE_V, D, QK_MAIN, QK_TAIL, PV_MAIN, PV_TAIL, BLOCK_K, EVEN, PRECISION, REF_BIAS, SUM_WIDTH,
        )  # fmt: skip
        if REF_QUERIES and is_reference:
            total = row_total(row_sum, SUM_WIDTH)
            own_lse = row_max + tl.log2(total)
            joint_lse = add_in_log2(own_lse, reference_lse)
            share = tl.exp2(own_lse - joint_lse) / total
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
            row_sum = zero_sum(BLOCK_Q, SUM_WIDTH)
            accumulator = zero_tile(BLOCK_Q, PV_MAIN, PV_TAIL)

    out_pointer = contiguous_pointer(out, batch, token, head, frame_tokens + num_ref_rows, H, D)
    if REF_QUERIES and is_reference:
        sum_pointer = contiguous_pointer(partials, slot, first_row, head, num_ref_tokens, H, D)
        own_pointer = contiguous_pointer(partials, slot + 1, first_row, head, num_ref_tokens, H, D)
        own = load_tile(own_pointer, num_rows, H * D, D, PV_MAIN, PV_TAIL, BLOCK_Q, EVEN)
        own = scale_tile(own, reference_weight[:, None] / num_frames, PV_TAIL)
        destination = sum_pointer if SPLIT else out_pointer
        store_sum(destination, own, sum_pointer, True, num_rows, H * D, D, PV_MAIN, PV_TAIL, EVEN)
    else:
        total = row_total(row_sum, SUM_WIDTH)
        output = scale_tile(accumulator, 1.0 / total[:, None], PV_TAIL)
        store_tile(out_pointer, output, num_rows, H * D, D, PV_MAIN, PV_TAIL, EVEN)
        if SAVE:
            tl.store(lse_pointer + token, row_max + tl.log2(total), mask=in_range)
