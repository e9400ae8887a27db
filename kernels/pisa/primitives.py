"""What the forward and the backward kernels share: tiles of a head, products of tiles, program indices.

A head of D columns is held as a pair `(main, tail)` of tiles whose widths are powers of two, e.g. 80 = 64 + 16, because
padding 80 to 128 would cost 1.6 times the matrix work. A head without tail repeats its main tile, which nobody reads.

"Frame F" is the reference. Where it asks as well (REF_QUERIES, that is PISA) it stands behind the frames in one tensor,
`[frame 0 | … | frame F-1 | reference]`; its keys and values have pointers of their own in either case.
"""

import triton
import triton.language as tl

# Run-time arguments of the attention kernels that must not make variants of the machine code by their values.
INTEGERS = (
    "stride_q_batch", "stride_q_head", "stride_k_batch", "stride_k_head", "stride_v_batch", "stride_v_head",
    "stride_k_ref_batch", "stride_k_ref_head", "stride_v_ref_batch", "stride_v_ref_head", "stride_ref_gradient",
    "num_reference_programs", "num_frames", "num_tokens", "num_ref_tokens", "num_groups",
)  # fmt: skip


@triton.jit
def head_pointer(
    pointer, batch, token, head, stride_batch, STRIDE_TOKEN: tl.constexpr, stride_head, ALIGN: tl.constexpr
):
    """Address of column 0 of one token's head, in 64-bit arithmetic; every stride is a multiple of ALIGN."""
    offset = tl.cast(batch, tl.int64) * stride_batch + tl.cast(token, tl.int64) * STRIDE_TOKEN
    return pointer + tl.multiple_of(offset + tl.cast(head, tl.int64) * stride_head, ALIGN)


@triton.jit
def segment_pointer(
    own, reference, is_reference, batch, own_token, reference_token, head,
    stride_own_batch, stride_own_head, stride_reference_batch, stride_reference_head,
    STRIDE_TOKEN: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """`head_pointer` into `own` or, where `is_reference`, into `reference`, whose tokens lie equally far apart."""
    return head_pointer(
        tl.where(is_reference, reference, own),
        batch,
        tl.where(is_reference, reference_token, own_token),
        head,
        tl.where(is_reference, stride_reference_batch, stride_own_batch),
        STRIDE_TOKEN,
        tl.where(is_reference, stride_reference_head, stride_own_head),
        ALIGN,
    )


@triton.jit
def contiguous_pointer(pointer, batch, token, head, num_tokens, H: tl.constexpr, D: tl.constexpr):
    """Address of column 0 of one token's head in a contiguous `[batch, num_tokens, H, D]`."""
    return pointer + (tl.cast(batch, tl.int64) * num_tokens + token) * (H * D) + head * D


@triton.jit
def lse_offset(batch, head, num_frames, num_tokens, num_ref_rows, H: tl.constexpr):
    """Where one head's row statistics begin in `[B, H, F·N + (F + 1)·num_ref_rows]`."""
    num_rows = num_frames * num_tokens + (num_frames + 1) * num_ref_rows
    return (tl.cast(batch, tl.int64) * H + head) * num_rows


@triton.jit
def row_offsets(BLOCK: tl.constexpr, STRIDE: tl.constexpr):
    """Offsets of a tile's rows, in 64 bits only where 32 do not reach."""
    rows = tl.arange(0, BLOCK)
    if BLOCK * STRIDE >= 2**31:
        rows = rows.to(tl.int64)
    return rows * STRIDE


@triton.jit
def load_columns(
    pointer, num_rows, STRIDE: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr,
    BLOCK: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """One of the two tiles of `load_tile`: WIDTH columns from FIRST on."""
    rows = tl.arange(0, BLOCK)
    columns = FIRST + tl.arange(0, WIDTH)
    pointers = pointer + row_offsets(BLOCK, STRIDE)[:, None] + columns[None, :]  # [BLOCK, WIDTH]
    if EVEN and FIRST + WIDTH <= D:
        tile = tl.load(pointers)
    elif EVEN:
        tile = tl.load(pointers, mask=(columns < D)[None, :], other=0.0)
    else:
        tile = tl.load(pointers, mask=(rows < num_rows)[:, None] & (columns < D)[None, :], other=0.0)
    return tile


@triton.jit
def load_tile(
    pointer, num_rows, STRIDE: tl.constexpr, D: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
    BLOCK: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """BLOCK tokens of one head, `[BLOCK, D]`; zero past `num_rows` (not looked at when EVEN) and past column D."""
    main = load_columns(pointer, num_rows, STRIDE, 0, MAIN, D, BLOCK, EVEN)
    if TAIL == 0:
        return (main, main)
    else:
        return (main, load_columns(pointer, num_rows, STRIDE, MAIN, TAIL, D, BLOCK, EVEN))


@triton.jit
def store_columns(
    pointer, tile, num_rows, STRIDE: tl.constexpr, FIRST: tl.constexpr, D: tl.constexpr, EVEN: tl.constexpr
):
    """One of the two tiles of `store_tile`."""
    BLOCK: tl.constexpr = tile.shape[0]
    columns = FIRST + tl.arange(0, tile.shape[1])
    pointers = pointer + row_offsets(BLOCK, STRIDE)[:, None] + columns[None, :]
    mask = (columns < D)[None, :]
    if not EVEN:
        mask = (tl.arange(0, BLOCK) < num_rows)[:, None] & mask
    tl.store(pointers, tile.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def store_tile(
    pointer, tile, num_rows, STRIDE: tl.constexpr, D: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """Writes D columns of a tile `[BLOCK, D]`, `num_rows` rows of it unless EVEN, rounded to the pointer's dtype."""
    store_columns(pointer, tile[0], num_rows, STRIDE, 0, D, EVEN)
    if TAIL > 0:
        store_columns(pointer, tile[1], num_rows, STRIDE, MAIN, D, EVEN)


@triton.jit
def store_sum(
    pointer, tile, addend, has_addend, num_rows, STRIDE: tl.constexpr, D: tl.constexpr,
    MAIN: tl.constexpr, TAIL: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Stores a tile `[BLOCK, D]` plus, if there is one, the tile that `addend` points at, main before tail."""
    BLOCK: tl.constexpr = tile[0].shape[0]
    main = tile[0]
    if has_addend:
        main += load_columns(addend, num_rows, STRIDE, 0, MAIN, D, BLOCK, EVEN)
    store_columns(pointer, main, num_rows, STRIDE, 0, D, EVEN)
    if TAIL > 0:
        tail = tile[1]
        if has_addend:
            tail += load_columns(addend, num_rows, STRIDE, MAIN, TAIL, D, BLOCK, EVEN)
        store_columns(pointer, tail, num_rows, STRIDE, MAIN, D, EVEN)


@triton.jit
def zero_tile(BLOCK: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr):
    """An fp32 accumulator `[BLOCK, D]`."""
    main = tl.zeros((BLOCK, MAIN), tl.float32)
    if TAIL == 0:
        return (main, main)
    else:
        return (main, tl.zeros((BLOCK, TAIL), tl.float32))


@triton.jit
def scale_tile(tile, row_scale, TAIL: tl.constexpr):
    """Multiplies each row of `[BLOCK, D]` by its factor: `row_scale` is `[BLOCK, 1]` or a scalar."""
    if TAIL == 0:
        return (tile[0] * row_scale, tile[1])
    else:
        return (tile[0] * row_scale, tile[1] * row_scale)


@triton.jit
def dot_heads(a, b, TAIL: tl.constexpr, PRECISION: tl.constexpr):
    """`a bᵀ` over the head's columns: `[A, D] × [B, D] → [A, B]` in fp32."""
    product = tl.dot(a[0], tl.trans(b[0]), input_precision=PRECISION)
    if TAIL > 0:
        product = tl.dot(a[1], tl.trans(b[1]), product, input_precision=PRECISION)
    return product


@triton.jit
def accumulate_rows(accumulator, weights, tile, TAIL: tl.constexpr, PRECISION: tl.constexpr):
    """`accumulator + weights @ tile`: `[A, D] + [A, B] × [B, D]`; the weights are rounded to the tile's dtype."""
    weights = weights.to(tile[0].dtype)
    main = tl.dot(weights, tile[0], accumulator[0], input_precision=PRECISION)
    if TAIL == 0:
        return (main, accumulator[1])
    else:
        return (main, tl.dot(weights, tile[1], accumulator[1], input_precision=PRECISION))


@triton.jit
def log2_bias(ref_bias, batch, head, H: tl.constexpr, REF_BIAS: tl.constexpr):
    """What is added to the reference's scores of one head, in base 2; -inf leaves the reference out."""
    if REF_BIAS:
        return tl.load(ref_bias + batch * H + head) * 1.4426950408889634
    else:
        return 0.0


@triton.jit
def group_bounds(group, num_groups, num_items):
    """The contiguous share `[first, last)` of `num_items` frames that a group takes; shares differ by at most one."""
    return group * num_items // num_groups, (group + 1) * num_items // num_groups


@triton.jit
def program_work(
    num_reference_programs, num_frames, num_tokens, num_ref_tokens, num_groups, H: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What this program of the 1-D grid works on: `(is_reference, tile, head, batch, index)`.

    The reference's programs come first, since they are the longest: a tile of the reference against a group of frames,
    `index` being the group. Then the frames' programs: a tile of one frame, `index` being the frame. The tile runs
    fastest, so that neighbours share what they read in the L2 cache.
    """
    program = tl.program_id(0)
    is_reference = program < num_reference_programs
    program = tl.where(is_reference, program, program - num_reference_programs)
    num_tiles = tl.cdiv(tl.where(is_reference, num_ref_tokens, num_tokens), BLOCK)
    num_items = tl.where(is_reference, num_groups, num_frames)
    outer = program // num_tiles // H
    return is_reference, program % num_tiles, program // num_tiles % H, outer // num_items, outer % num_items


@triton.jit
def sum_groups(partials, out, num_groups, size, stride_group, stride_out_batch, BLOCK: tl.constexpr):
    """`out[b, :size] = Σ_g partials[b, g, :size]`, in a fixed order: two runs give the same bits.

    Args:
        partials: fp32, one contiguous share of `size` elements per group of frames, groups `stride_group` apart.
        out: its reference tokens are contiguous, `size = M·H·D` elements per batch element.
    """
    batch = tl.cast(tl.program_id(1), tl.int64)
    columns = tl.cast(tl.program_id(0), tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < size
    total = tl.zeros((BLOCK,), tl.float32)
    for group in range(num_groups):
        total += tl.load(partials + (batch * num_groups + group) * stride_group + columns, mask=mask, other=0.0)
    tl.store(out + batch * stride_out_batch + columns, total.to(out.dtype.element_ty), mask=mask)
