"""Which tiles each kernel uses: a table found by static search."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Config:
    """Tile sizes and compiler options of one kernel.

    `qk_widths` and `pv_widths` are the widths (main, tail) of a head's tiles, see primitives.py: of the tiles whose
    columns are summed over, and of those whose columns are produced.
    """

    block_q: int
    block_k: int
    num_warps: int
    num_stages: int
    max_registers: int | None
    qk_widths: tuple[int, int]
    pv_widths: tuple[int, int]

    def launch_options(self) -> dict[str, int]:
        """The keyword arguments that Triton takes besides the kernel's own."""
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        if self.max_registers is not None:
            options["maxnreg"] = self.max_registers
        return options


def head_widths(head_dim: int) -> tuple[int, int]:
    """Powers of two (main, tail) that cover the head with the least padding; a dot needs at least 16 columns."""
    main = 16
    while main * 2 <= head_dim:
        main *= 2
    tail = 0
    if head_dim > main:
        tail = 16
        while tail < head_dim - main:
            tail *= 2
    return (main + tail, 0) if tail == main else (main, tail)


def choose_config(kernel: str, head_dim: int, dtype: torch.dtype) -> Config:
    """The tiles of `kernel`: "forward", "backward_query" or "backward_key"."""
    widths = head_widths(head_dim)
    return Config(64, 64, 4, 2, None, widths, widths)


def frame_groups(*, num_frames: int, num_tokens: int, num_reference: int, heads: int, block: int, slots: int) -> int:
    """Into how many groups the frames are split for the reference's programs.

    One group computes the ref/ref block once, but in programs much longer than a frame's, for the last of which a small
    problem would wait. In key tokens per program, a launch lasts about as long as its average load and at least as long
    as its longest program, which should be done by the middle of the launch.

    Args:
        heads: B·H.
        block: rows per program.
        slots: programs that run at the same time.
    """
    reference_tiles, frame_tiles = -(-num_reference // block), -(-num_tokens // block)
    frame_load = heads * num_frames * frame_tiles * (num_tokens + num_reference)

    def duration(groups: int) -> float:
        longest = num_reference + -(-num_frames // groups) * num_tokens
        reference_load = heads * reference_tiles * (groups * num_reference + num_frames * num_tokens)
        return max((frame_load + reference_load) / slots, 2 * longest)

    candidates = {min(2**exponent, num_frames) for exponent in range(num_frames.bit_length() + 1)}
    return min(sorted(candidates), key=duration)
