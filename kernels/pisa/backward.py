"""The backward kernels: row statistics, then the gradient of the queries, then of the keys and values.

The averaging over frames and the shared ref/ref block disappear into the statistics of a row. With `w = 1/F`, a
reference row contributes to frame i's gradients as an ordinary attention row would whose

    lse_i' = lse_i - log2(w)        so that exp2(s - lse_i') = w P_i
    δ_i'   = dO_ref · O^i_r         so that dS = w P_i (dP - δ_i')

and all its F copies of the ref/ref block add up to one row (softmax below is over the frames i)

    lse_F' = -log2(w Σ_i exp2(-lse_i)),   δ_F' = Σ_i softmax(-lse)_i δ_i'

so that one loop serves every pair of tiles: `P' = exp2(s - lse')`, `dV = P'ᵀ dO`, `dS = P' (dP - δ')`. The reference as
keys counts as frame F, and the statistics of the ref/ref block follow those of frame F - 1. A bias on the reference's
scores is taken from the lse of the rows that meet them: `exp2(s + b - lse) = exp2(s - (lse - b))`.

Where the reference asks nothing (not REF_QUERIES) there are the frames' rows alone, T = F·N and R = F·N.

No atomics: a program owns the tile that it writes, and sums over groups of frames go through fp32 partials.
Letters as in forward.py; R = F·N + (F + 1)·M is the number of statistics per head.
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
    store_tile,
    zero_tile,
)


@triton.jit
def row_dots(a, b, TAIL: tl.constexpr):
    """Row sums of the product of two tiles `[A, D]`, in fp32: `[A]`."""
    dots = tl.sum(a[0].to(tl.float32) * b[0].to(tl.float32), 1)
    if TAIL > 0:
        dots += tl.sum(a[1].to(tl.float32) * b[1].to(tl.float32), 1)
    return dots


@triton.jit(do_not_specialize=INTEGERS)
def pisa_row_statistics(
    out, out_gradient, reference_outputs, lse, row_lse, row_delta,
    num_reference_programs, num_frames, num_tokens, num_ref_tokens,
    H: tl.constexpr, D: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, BLOCK: tl.constexpr,
    REF_QUERIES: tl.constexpr,
):  # fmt: skip
    """The statistics lse' and δ' of every row, from what the forward kernel saved.

    Args:
        out, out_gradient: `[B, T, H, D]` contiguous.
        reference_outputs, lse: of the forward kernel.
        row_lse, row_delta: fp32 `[B, H, R]`, written; row_lse only when REF_QUERIES, for else it is lse.
    """
    is_reference, tile, head, batch, frame = program_work(
        num_reference_programs, num_frames, num_tokens, num_ref_tokens, 1, H, BLOCK
    )
    frame_tokens = num_frames * num_tokens
    num_ref_rows = num_ref_tokens if REF_QUERIES else 0
    first_row = tile * BLOCK
    token = tl.where(is_reference, frame_tokens, frame * num_tokens) + first_row
    num_rows = tl.where(is_reference, num_ref_tokens, num_tokens) - first_row
    in_range = tl.arange(0, BLOCK) < num_rows
    rows = lse_offset(batch, head, num_frames, num_tokens, num_ref_rows, H) + tl.arange(0, BLOCK)
    pointer = contiguous_pointer(out_gradient, batch, token, head, frame_tokens + num_ref_rows, H, D)
    gradient = load_tile(pointer, num_rows, H * D, D, MAIN, TAIL, BLOCK, False)  # [BLOCK, D]
    if REF_QUERIES and is_reference:
        rows += frame_tokens + first_row
        own = batch * (num_frames + 1) + num_frames
        pointer = contiguous_pointer(reference_outputs, own, first_row, head, num_ref_tokens, H, D)
        own_delta = row_dots(load_tile(pointer, num_rows, H * D, D, MAIN, TAIL, BLOCK, False), gradient, TAIL)
        own_lse = tl.load(lse + rows + num_frames * num_ref_tokens, mask=in_range, other=0.0)
        log2_frames = tl.log2(tl.cast(num_frames, tl.float32))
        # An online softmax of -lse over the frames, to weight δ_i'.
        weight_max = tl.full((BLOCK,), float("-inf"), tl.float32)
        weight_sum = tl.zeros((BLOCK,), tl.float32)
        weighted_delta = tl.zeros((BLOCK,), tl.float32)
        for i in range(num_frames):
            item = batch * (num_frames + 1) + i
            pointer = contiguous_pointer(reference_outputs, item, first_row, head, num_ref_tokens, H, D)
            delta = row_dots(load_tile(pointer, num_rows, H * D, D, MAIN, TAIL, BLOCK, False), gradient, TAIL)
            joint_lse = tl.load(lse + rows + i * num_ref_tokens, mask=in_range, other=0.0)
            delta += tl.exp2(own_lse - joint_lse) * own_delta
            tl.store(row_lse + rows + i * num_ref_tokens, joint_lse + log2_frames, mask=in_range)
            tl.store(row_delta + rows + i * num_ref_tokens, delta, mask=in_range)
            new_max = tl.maximum(weight_max, -joint_lse)
            rescale = tl.exp2(weight_max - new_max)
            weight = tl.exp2(-joint_lse - new_max)
            weight_sum = weight_sum * rescale + weight
            weighted_delta = weighted_delta * rescale + weight * delta
            weight_max = new_max
        rows += num_frames * num_ref_tokens
        tl.store(row_lse + rows, log2_frames - weight_max - tl.log2(weight_sum), mask=in_range)
        tl.store(row_delta + rows, weighted_delta / weight_sum, mask=in_range)
    else:
        rows += token
        pointer = contiguous_pointer(out, batch, token, head, frame_tokens + num_ref_rows, H, D)
        output = load_tile(pointer, num_rows, H * D, D, MAIN, TAIL, BLOCK, False)
        if REF_QUERIES:
            tl.store(row_lse + rows, tl.load(lse + rows, mask=in_range, other=0.0), mask=in_range)
        tl.store(row_delta + rows, row_dots(output, gradient, TAIL), mask=in_range)


@triton.jit
def accumulate_query_gradient(
    accumulator, q, gradient, lse, delta, keys, values, num_keys, scale_log2,
    STRIDE_K: tl.constexpr, STRIDE_V: tl.constexpr, D: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
    BLOCK_K: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds `dS K` over `num_keys` keys, the first of which `keys` and `values` point at.

    accumulator, q and gradient (dO) are `[Q, D]`, lse and delta `[Q]`.
    """
    for start in range(0, num_keys, BLOCK_K):
        remaining = num_keys - start
        token = tl.cast(start, tl.int64)
        k = load_tile(keys + token * STRIDE_K, remaining, STRIDE_K, D, MAIN, TAIL, BLOCK_K, EVEN)  # [K, D]
        v = load_tile(values + token * STRIDE_V, remaining, STRIDE_V, D, MAIN, TAIL, BLOCK_K, EVEN)  # [K, D]
        scores = dot_heads(q, k, TAIL, PRECISION)  # [Q, K]
        weights = tl.exp2(scores * scale_log2 - lse[:, None])
        if not EVEN:
            weights = tl.where((tl.arange(0, BLOCK_K) < remaining)[None, :], weights, 0.0)
        score_gradient = weights * (dot_heads(gradient, v, TAIL, PRECISION) - delta[:, None])  # [Q, K]
        accumulator = accumulate_rows(accumulator, score_gradient, k, TAIL, PRECISION)  # [Q, D]
    return accumulator


@triton.jit(do_not_specialize=INTEGERS)
def pisa_backward_query(
    q, k, v, k_ref, v_ref, ref_bias, out_gradient, row_lse, row_delta, q_gradient, partials,
    stride_q_batch, stride_q_head, stride_k_batch, stride_k_head, stride_v_batch, stride_v_head,
    stride_k_ref_batch, stride_k_ref_head, stride_v_ref_batch, stride_v_ref_head,
    num_reference_programs, num_frames, num_tokens, num_ref_tokens, num_groups, scale, scale_log2,
    STRIDE_Q: tl.constexpr, STRIDE_K: tl.constexpr, STRIDE_V: tl.constexpr, H: tl.constexpr, D: tl.constexpr,
    MAIN: tl.constexpr, TAIL: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    EVEN: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
    REF_QUERIES: tl.constexpr, REF_BIAS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """dQ of one tile of queries: of a frame over its own and the reference's keys, or of the reference over all keys.

    Args:
        q, k, v, k_ref, v_ref, ref_bias: as in the forward kernel.
        out_gradient, q_gradient: `[B, T, H, D]` contiguous.
        row_lse, row_delta: fp32 `[B, H, R]`.
        partials: fp32 `[B, G, M, H, D]`, each group of frames' share of the reference's dQ; written when SPLIT (G > 1).
    """
    is_reference, tile, head, batch, index = program_work(
        num_reference_programs, num_frames, num_tokens, num_ref_tokens, num_groups, H, BLOCK_Q
    )
    frame_tokens = num_frames * num_tokens
    num_ref_rows = num_ref_tokens if REF_QUERIES else 0

    first_row = tile * BLOCK_Q
    token = tl.where(is_reference, frame_tokens, index * num_tokens) + first_row
    num_rows = tl.where(is_reference, num_ref_tokens, num_tokens) - first_row
    query_pointer = head_pointer(q, batch, token, head, stride_q_batch, STRIDE_Q, stride_q_head, ALIGN)
    q_tile = load_tile(query_pointer, num_rows, STRIDE_Q, D, MAIN, TAIL, BLOCK_Q, EVEN)  # [Q, D]
    all_tokens = frame_tokens + num_ref_rows
    gradient_pointer = contiguous_pointer(out_gradient, batch, token, head, all_tokens, H, D)
    gradient = load_tile(gradient_pointer, num_rows, H * D, D, MAIN, TAIL, BLOCK_Q, EVEN)  # [Q, D]

    # The key segments of the tile: frame `index` and the reference, or a group's share of all frames and the reference.
    rows = tl.arange(0, BLOCK_Q)
    statistics = lse_offset(batch, head, num_frames, num_tokens, num_ref_rows, H) + rows
    first_frame, last_frame = group_bounds(index, num_groups, num_frames + 1)
    num_segments = tl.where(is_reference, last_frame - first_frame, 2)
    accumulator = zero_tile(BLOCK_Q, MAIN, TAIL)
    bias = log2_bias(ref_bias, batch, head, H, REF_BIAS)
    for segment in tl.range(num_segments, disable_licm=True):
        frame = tl.where(is_reference, first_frame + segment, tl.where(segment == 0, index, num_frames))
        of_reference = frame == num_frames
        row = tl.where(is_reference, frame_tokens + frame * num_ref_tokens + first_row, token)
        lse = tl.load(row_lse + statistics + row, mask=rows < num_rows, other=0.0)
        delta = tl.load(row_delta + statistics + row, mask=rows < num_rows, other=0.0)
        num_keys = tl.where(of_reference, num_ref_tokens, num_tokens)
        if REF_BIAS:
            lse -= tl.where(of_reference, bias, 0.0)
            num_keys = tl.where(of_reference & (bias == float("-inf")), 0, num_keys)
        keys = segment_pointer(
            k, k_ref, of_reference, batch, frame * num_tokens, 0, head,
            stride_k_batch, stride_k_head, stride_k_ref_batch, stride_k_ref_head, STRIDE_K, ALIGN,
        )  # fmt: skip
        values = segment_pointer(
            v, v_ref, of_reference, batch, frame * num_tokens, 0, head,
            stride_v_batch, stride_v_head, stride_v_ref_batch, stride_v_ref_head, STRIDE_V, ALIGN,
        )  # fmt: skip
        accumulator = accumulate_query_gradient(
            accumulator, q_tile, gradient, lse, delta, keys, values, num_keys, scale_log2,
            STRIDE_K, STRIDE_V, D, MAIN, TAIL, BLOCK_K, EVEN, PRECISION,
        )  # fmt: skip
    accumulator = scale_tile(accumulator, scale, TAIL)
    if SPLIT and is_reference:
        group = batch * num_groups + index
        partial_pointer = contiguous_pointer(partials, group, first_row, head, num_ref_tokens, H, D)
        store_tile(partial_pointer, accumulator, num_rows, H * D, D, MAIN, TAIL, EVEN)
    else:
        out_pointer = contiguous_pointer(q_gradient, batch, token, head, all_tokens, H, D)
        store_tile(out_pointer, accumulator, num_rows, H * D, D, MAIN, TAIL, EVEN)


@triton.jit(do_not_specialize=INTEGERS)
def pisa_backward_key(
    q, k, v, k_ref, v_ref, ref_bias, out_gradient, row_lse, row_delta,
    k_gradient, v_gradient, k_ref_gradient, v_ref_gradient, k_partials, v_partials,
    stride_q_batch, stride_q_head, stride_k_batch, stride_k_head, stride_v_batch, stride_v_head,
    stride_k_ref_batch, stride_k_ref_head, stride_v_ref_batch, stride_v_ref_head, stride_ref_gradient,
    num_reference_programs, num_frames, num_tokens, num_ref_tokens, num_groups, scale, scale_log2,
    STRIDE_Q: tl.constexpr, STRIDE_K: tl.constexpr, STRIDE_V: tl.constexpr, H: tl.constexpr, D: tl.constexpr,
    MAIN: tl.constexpr, TAIL: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    EVEN: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
    REF_QUERIES: tl.constexpr, REF_BIAS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """dK and dV of one tile of keys: of a frame, or of the reference from a group of frames' queries.

    Scores are held transposed, `[K, Q]`: their gradient then feeds the matrix unit from registers, in the layout in
    which it was made.

    Args:
        q, k, v, k_ref, v_ref, ref_bias: as in the forward kernel.
        out_gradient, k_gradient, v_gradient: `[B, T, H, D]` contiguous.
        row_lse, row_delta: fp32 `[B, H, R]`.
        k_ref_gradient, v_ref_gradient: `[B, M, H, D]` contiguous but for the batch, stride_ref_gradient apart; with
            REF_QUERIES the reference's part of k_gradient and v_gradient. Not written when SPLIT.
        k_partials, v_partials: fp32 `[B, G, M, H, D]`, each group's share of the reference's dK and dV; when SPLIT,
            which is when G > 1 or several videos share one reference.
    """
    is_reference, tile, head, batch, index = program_work(
        num_reference_programs, num_frames, num_tokens, num_ref_tokens, num_groups, H, BLOCK_K
    )
    frame_tokens = num_frames * num_tokens
    num_ref_rows = num_ref_tokens if REF_QUERIES else 0
    all_tokens = frame_tokens + num_ref_rows
    queries = head_pointer(q, batch, 0, head, stride_q_batch, STRIDE_Q, stride_q_head, ALIGN)
    gradients = contiguous_pointer(out_gradient, batch, 0, head, all_tokens, H, D)

    first_row = tile * BLOCK_K
    token = tl.where(is_reference, frame_tokens, index * num_tokens) + first_row
    num_rows = tl.where(is_reference, num_ref_tokens, num_tokens) - first_row
    key_pointer = segment_pointer(
        k, k_ref, is_reference, batch, token, first_row, head,
        stride_k_batch, stride_k_head, stride_k_ref_batch, stride_k_ref_head, STRIDE_K, ALIGN,
    )  # fmt: skip
    value_pointer = segment_pointer(
        v, v_ref, is_reference, batch, token, first_row, head,
        stride_v_batch, stride_v_head, stride_v_ref_batch, stride_v_ref_head, STRIDE_V, ALIGN,
    )  # fmt: skip
    k_tile = load_tile(key_pointer, num_rows, STRIDE_K, D, MAIN, TAIL, BLOCK_K, EVEN)  # [K, D]
    v_tile = load_tile(value_pointer, num_rows, STRIDE_V, D, MAIN, TAIL, BLOCK_K, EVEN)  # [K, D]

    # Two segments of queries: frame tokens (of one frame or of a group of frames), then reference tokens, whose
    # statistics are those for this frame. The ref/ref block is the last group's.
    first_frame, last_frame = group_bounds(index, num_groups, num_frames)
    first_frame = tl.where(is_reference, first_frame, index)
    last_frame = tl.where(is_reference, last_frame, index + 1)
    statistics = lse_offset(batch, head, num_frames, num_tokens, num_ref_rows, H)
    k_accumulator, v_accumulator = zero_tile(BLOCK_K, MAIN, TAIL), zero_tile(BLOCK_K, MAIN, TAIL)
    bias = log2_bias(ref_bias, batch, head, H, REF_BIAS)
    if REF_BIAS:
        bias = tl.where(is_reference, bias, 0.0)
        last_frame = tl.where(bias == float("-inf"), first_frame, last_frame)  # nobody looks at a reference left out
    for segment in tl.range(2 if REF_QUERIES else 1, disable_licm=True):
        if segment == 0:
            first_query = first_frame * num_tokens
            row = first_query
            num_queries = (last_frame - first_frame) * num_tokens
        else:
            first_query = frame_tokens
            row = frame_tokens + tl.where(is_reference, num_frames, index) * num_ref_tokens
            num_queries = tl.where(is_reference & (last_frame < num_frames), 0, num_ref_tokens)
        offset = tl.multiple_of(statistics + row, 16 if EVEN else 1)
        k_accumulator, v_accumulator = accumulate_key_gradients(
            k_accumulator, v_accumulator, k_tile, v_tile, queries, gradients,
            row_lse + offset, row_delta + offset,
            first_query, num_queries, scale_log2, bias,
            STRIDE_Q, H * D, D, MAIN, TAIL, BLOCK_Q, EVEN, PRECISION, REF_BIAS,
        )  # fmt: skip
    k_accumulator = scale_tile(k_accumulator, scale, TAIL)
    if SPLIT and is_reference:
        group = batch * num_groups + index
        k_partial = contiguous_pointer(k_partials, group, first_row, head, num_ref_tokens, H, D)
        v_partial = contiguous_pointer(v_partials, group, first_row, head, num_ref_tokens, H, D)
        store_tile(k_partial, k_accumulator, num_rows, H * D, D, MAIN, TAIL, EVEN)
        store_tile(v_partial, v_accumulator, num_rows, H * D, D, MAIN, TAIL, EVEN)
    else:
        stride_batch = tl.cast(all_tokens, tl.int64) * (H * D)
        k_pointer = segment_pointer(
            k_gradient, k_ref_gradient, is_reference, batch, token, first_row, head,
            stride_batch, D, tl.cast(stride_ref_gradient, tl.int64), D, H * D, 1,
        )  # fmt: skip
        v_pointer = segment_pointer(
            v_gradient, v_ref_gradient, is_reference, batch, token, first_row, head,
            stride_batch, D, tl.cast(stride_ref_gradient, tl.int64), D, H * D, 1,
        )  # fmt: skip
        store_tile(k_pointer, k_accumulator, num_rows, H * D, D, MAIN, TAIL, EVEN)
        store_tile(v_pointer, v_accumulator, num_rows, H * D, D, MAIN, TAIL, EVEN)


@triton.jit
def accumulate_key_gradients(
    k_accumulator, v_accumulator, k, v, queries, gradients, lse_pointer, delta_pointer,
    first_token, num_queries, scale_log2, bias,
    STRIDE_Q: tl.constexpr, STRIDE_GRADIENT: tl.constexpr, D: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
    BLOCK_Q: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
    REF_BIAS: tl.constexpr,
):  # fmt: skip
    """Adds `dSᵀ Q` and `Pᵀ dO` over `num_queries` queries; accumulators, k, v are `[K, D]`.

    `lse_pointer` and `delta_pointer` point at the first query's statistics, `queries` and `gradients` at token 0.
    `bias`, in base 2, was added to these keys' scores when REF_BIAS.
    """
    for start in range(0, num_queries, BLOCK_Q):
        remaining = num_queries - start
        token = tl.cast(first_token + start, tl.int64)
        rows = tl.arange(0, BLOCK_Q)
        q = load_tile(queries + token * STRIDE_Q, remaining, STRIDE_Q, D, MAIN, TAIL, BLOCK_Q, EVEN)  # [Q, D]
        gradient = load_tile(
            gradients + token * STRIDE_GRADIENT, remaining, STRIDE_GRADIENT, D, MAIN, TAIL, BLOCK_Q, EVEN
        )  # [Q, D]
        if EVEN:
            lse = tl.load(lse_pointer + start + rows)
            delta = tl.load(delta_pointer + start + rows)
        else:
            # Queries past the end get no weight.
            lse = tl.load(lse_pointer + start + rows, mask=rows < remaining, other=float("inf"))
            delta = tl.load(delta_pointer + start + rows, mask=rows < remaining, other=0.0)
        scores = dot_heads(k, q, TAIL, PRECISION)  # [K, Q]
        if REF_BIAS:
            lse -= bias
        weights = tl.exp2(scores * scale_log2 - lse[None, :])
        v_accumulator = accumulate_rows(v_accumulator, weights, gradient, TAIL, PRECISION)  # [K, D]
        score_gradient = weights * (dot_heads(v, gradient, TAIL, PRECISION) - delta[None, :])  # [K, Q]
        k_accumulator = accumulate_rows(k_accumulator, score_gradient, q, TAIL, PRECISION)  # [K, D]
    return k_accumulator, v_accumulator
