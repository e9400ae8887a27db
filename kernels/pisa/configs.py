"""Which tiles each kernel uses: a table per GPU family and head dim, found by static search, and what was tuned here.

The table was searched without a GPU (`python bench/static.py` shows what its entries compile to, in every variant): at
most 16 bytes spilled, wgmma on sm_90, no warp that repeats another's rows where that can be had, eight warps on a
multiprocessor or what fits there, then the fewest instructions for the same work. autotune.py measures instead. Nothing
is refused while it runs: what a call computes never depends on earlier calls.
"""

import functools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton

# In training the forward also stores what the backward needs, which takes registers. Its tiles are those of inference:
# reentrant checkpointing runs the one first and the other again, and both must give the same bits.
KERNELS = ("forward", "forward_training", "backward_query", "backward_key")


@dataclass(frozen=True)
class Config:
    """Tile sizes and compiler options of one kernel.

    `split_values` keeps the tail of the head apart (see primitives.py) also where the head's columns are produced; else
    the forward pads them to a power of two, which costs matrix work and saves registers. `sum_by_dot` lets the matrix
    unit add up the forward's weights of a row, which takes instructions out of the inner loop.
    """

    block_q: int
    block_k: int
    num_warps: int = 4
    num_stages: int = 2
    max_registers: int | None = None
    split_values: bool = True
    sum_by_dot: bool = False

    def fits(self, num_tokens: int, num_ref_tokens: int) -> bool:
        """Whether a frame's and the reference's tokens are whole tiles, so that no row or column needs a mask."""
        block = max(self.block_q, self.block_k)
        return num_tokens % block == 0 and num_ref_tokens % block == 0

    def repeats_work(self, kernel: str) -> bool:
        """Whether there are warps without rows of their own: mma.sync and wgmma give each 16, then start over."""
        return (self.block_k if kernel == "backward_key" else self.block_q) < 16 * self.num_warps

    @property
    def programs_at_once(self) -> int:
        """How many programs of 255 registers a thread a multiprocessor runs: eight warps.

        Fewer registers let more run; shared memory may let fewer, which options do not tell.
        """
        return max(1, 8 // self.num_warps)

    @property
    def arithmetic(self) -> tuple[object, ...]:
        """What the bits of a result depend on; stages and registers change the time alone."""
        return self.block_q, self.block_k, self.num_warps, self.split_values, self.sum_by_dot

    def launch_options(self) -> dict[str, int]:
        """The keyword arguments that Triton takes besides the kernel's own."""
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        if self.max_registers is not None and torch.version.hip is None:
            options["maxnreg"] = self.max_registers
        return options


# family -> kernel -> (largest head dim, configs in order of preference), the last where no other has whole tiles.
# On sm_90 128 rows come first: a program of 64 reads so much from L2 that this is its limit (bench/LOG.md).
_HOPPER_FORWARD = [
    (48, Config(128, 64, num_warps=8, max_registers=128), Config(64, 64, num_stages=3, max_registers=128)),
    (64, Config(128, 64, num_warps=8, max_registers=128), Config(64, 64, num_stages=3, max_registers=168)),
    (80, Config(128, 64, num_warps=8, num_stages=3), Config(64, 64, num_stages=3, max_registers=168)),
    (96, Config(128, 64, num_warps=8), Config(64, 64)),
    (128, Config(128, 64, num_warps=8)),
    (160, Config(128, 64, num_warps=8), Config(64, 64), Config(64, 64, num_warps=8)),
    (256, Config(64, 64, num_warps=8)),
]
_HOPPER = {
    "forward": _HOPPER_FORWARD,
    "forward_training": _HOPPER_FORWARD,
    "backward_query": [
        (48, Config(128, 64, num_warps=8, max_registers=128), Config(64, 64, num_stages=3)),
        (64, Config(128, 64, num_warps=8, max_registers=128), Config(64, 64, max_registers=168)),
        (96, Config(128, 64, num_warps=8), Config(64, 64, max_registers=168)),
        (128, Config(128, 64, num_warps=8), Config(64, 64)),
        (160, Config(128, 64, num_warps=8), Config(64, 32)),
        (192, Config(64, 32)),
        (256, Config(64, 32, num_warps=8)),
    ],
    "backward_key": [
        (64, Config(64, 64)),
        (96, Config(64, 64), Config(32, 64)),
        (128, Config(32, 64)),
        (160, Config(32, 128, num_warps=8), Config(16, 64), Config(16, 128, num_warps=8)),
        (192, Config(32, 64, num_warps=8)),
        (256, Config(16, 64, num_warps=8)),
    ],
}
# Accumulators live in tensor memory, whose 128 lanes 64 rows leave half empty; masks of partial tiles take registers.
_BLACKWELL_FORWARD = [
    (48, Config(128, 64), Config(64, 64, num_stages=3, max_registers=168)),
    (64, Config(128, 64, num_warps=8), Config(64, 64)),
    (96, Config(128, 64, num_warps=8, max_registers=255), Config(64, 64)),
    (128, Config(128, 64, num_warps=8), Config(64, 64, num_warps=8, num_stages=3, max_registers=255)),
    (160, Config(128, 64, num_warps=8), Config(64, 64), Config(64, 64, num_warps=8)),
    (256, Config(64, 64, num_warps=8)),
]
_BLACKWELL = {
    "forward": _BLACKWELL_FORWARD,
    "forward_training": _BLACKWELL_FORWARD,
    "backward_query": [
        (64, Config(128, 64), Config(64, 64)),
        (80, Config(128, 64), Config(64, 64), Config(64, 64, num_warps=8)),
        (128, Config(128, 64), Config(64, 64)),
        (160, Config(128, 64, num_warps=8), Config(64, 32, num_warps=8)),
        (256, Config(64, 32, num_warps=8)),
    ],
    "backward_key": [
        (64, Config(64, 128), Config(64, 64), Config(64, 64, num_warps=8)),
        (96, Config(64, 64, max_registers=255), Config(32, 64, max_registers=168)),
        (160, Config(64, 64), Config(32, 64)),
        (192, Config(32, 64)),
        (256, Config(32, 64, num_warps=8)),
    ],
}
# mma.sync instead of wgmma, and 99 KiB of shared memory on the smaller of these chips.
_AMPERE_FORWARD = [
    (48, Config(64, 64), Config(64, 32, num_stages=3)),
    (64, Config(64, 64, max_registers=168), Config(64, 32, num_stages=3)),
    (96, Config(64, 64), Config(64, 32)),
    (128, Config(64, 64, sum_by_dot=True)),
    (160, Config(64, 64, sum_by_dot=True), Config(32, 32, num_warps=2)),
    (256, Config(64, 32, num_warps=8)),
]
_AMPERE = {
    "forward": _AMPERE_FORWARD,
    "forward_training": _AMPERE_FORWARD,
    "backward_query": [
        (64, Config(64, 64)),
        (96, Config(64, 32)),
        (128, Config(128, 32, num_warps=8), Config(64, 32, max_registers=255)),
        (160, Config(64, 32)),
        (256, Config(32, 32)),
    ],
    "backward_key": [
        (96, Config(32, 64)),
        (128, Config(16, 128, num_warps=8), Config(16, 64)),
        (160, Config(16, 128, num_warps=8), Config(16, 64), Config(16, 32, num_warps=2)),
        (256, Config(16, 32, num_warps=8)),
    ],
}
# Of the same tiles ptxas makes other code for sm_120, where some spill.
_SM120_FORWARD = [
    (64, Config(64, 64), Config(64, 32, num_stages=3)),
    (96, Config(64, 64), Config(64, 32)),
    (128, Config(64, 32, sum_by_dot=True), Config(64, 16, sum_by_dot=True)),
    (160, Config(64, 32, sum_by_dot=True), Config(32, 16)),
    (256, Config(64, 32, num_warps=8), Config(32, 16)),
]
_SM120 = _AMPERE | {
    "forward": _SM120_FORWARD,
    "forward_training": _SM120_FORWARD,
    "backward_query": [
        (64, Config(64, 64), Config(64, 32)),
        (96, Config(64, 32)),
        (128, Config(128, 32, num_warps=8), Config(64, 32, max_registers=255)),
        (160, Config(64, 32), Config(32, 16, num_warps=2)),
        (256, Config(32, 32), Config(32, 16)),
    ],
    "backward_key": [
        (96, Config(32, 64)),
        (128, Config(16, 128, num_warps=8), Config(16, 64)),
        (160, Config(16, 128, num_warps=8), Config(16, 64), Config(16, 32, num_warps=2, num_stages=3)),
        (256, Config(16, 32, num_warps=8)),
    ],
}
_CDNA = _AMPERE | {"backward_key": [(128, Config(32, 64)), (160, Config(16, 64)), (256, Config(16, 32))]}
TABLE: dict[str, dict[str, Any]] = {
    "sm_80": _AMPERE,
    "sm_89": _AMPERE,
    "sm_90": _HOPPER,
    "sm_100": _BLACKWELL,
    "sm_120": _SM120,
    "gfx9": _CDNA,
}
# Without tensor cores (float32, unless torch allows tf32) a dot unrolls into single multiplications: small tiles.
_FLOAT32 = [(128, Config(32, 32)), (256, Config(16, 16))]


def gpu_family(device: torch.device) -> str:
    """The row of the table for a GPU; sm_90 without one."""
    if device.type != "cuda":
        return "sm_90"
    if torch.version.hip is not None:
        return "gfx9"
    capability = torch.cuda.get_device_capability(device)
    return {(8, 0): "sm_80", (9, 0): "sm_90"}.get(capability) or {8: "sm_89", 10: "sm_100"}.get(capability[0], "sm_120")


def table_configs(kernel: str, family: str, head_dim: int, dtype: torch.dtype) -> tuple[Config, ...]:
    """The table's entry, in order of preference."""
    entries = _FLOAT32 if dtype == torch.float32 else TABLE[family][kernel]
    return next(tuple(configs) for largest, *configs in entries if head_dim <= largest)


def choose_config(
    kernel: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    num_tokens: int,
    num_ref_tokens: int,
    ref_queries: bool = True,
) -> Config:
    """What was tuned for such shapes on this GPU, else the table's; whatever was called before."""
    key = tuning_key(kernel, device, dtype, head_dim, num_tokens, num_ref_tokens, ref_queries)
    if key in tuned_configs():
        return tuned_configs()[key]
    configs = table_configs(kernel, gpu_family(device), head_dim, dtype)
    return next((config for config in configs if config.fits(num_tokens, num_ref_tokens)), configs[-1])


def tuning_key(
    kernel: str,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    num_tokens: int,
    num_ref_tokens: int,
    ref_queries: bool = True,
) -> str:
    """GPU, Triton and shape family: what a tuned configuration is valid for. Tokens count by powers of two."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    tokens = (1 << max(count - 1, 0).bit_length() for count in (num_tokens, num_ref_tokens))
    kernel = kernel if ref_queries else f"{kernel} without reference queries"
    return "|".join(map(str, (gpu, triton.__version__, kernel, dtype, head_dim, *tokens)))


@functools.cache
def tuned_configs() -> dict[str, Config]:
    """The configurations that `autotune` has stored, by key; read once."""
    return _read_tuned(tuning_file())


def store_tuned(configs: dict[str, Config]) -> None:
    """Adds to the configurations in use and on disk, where those of other processes stay."""
    path = tuning_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_suffix(".lock")):
        tuned = _read_tuned(path) | configs
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps({key: asdict(config) for key, config in tuned.items()}, indent=1))
        temporary.replace(path)
    tuned_configs().update(configs)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; the operating system frees the lock of a process that died."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read_tuned(path: Path) -> dict[str, Config]:
    try:
        return {key: Config(**fields) for key, fields in json.loads(path.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):  # none yet, or of another version
        return {}


def tuning_file() -> Path:
    """Where tuned configurations are kept, under `$XDG_CACHE_HOME` or `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "videomaker", "pisa-configs.json")


def head_widths(head_dim: int, *, split: bool = True) -> tuple[int, int]:
    """Powers of two (main, tail) that cover the head: with the least padding, or as one tile (tail 0) unless `split`.

    A dot needs at least 16 columns.
    """
    whole = max(16, triton.next_power_of_2(head_dim))
    main = whole // 2
    tail = max(16, triton.next_power_of_2(head_dim - main))
    return (main, tail) if split and main + tail < whole else (whole, 0)


def frame_groups(
    *,
    num_frames: int,
    num_tokens: int,
    num_ref_tokens: int,
    heads: int,
    block: int,
    slots: int,
    ref_queries: bool = True,
) -> int:
    """Into how many groups the frames are split for the reference's programs.

    One group computes the ref/ref block once, but in programs much longer than a frame's, for the last of which a small
    problem would wait. In key tokens per program, a launch lasts about as long as its average load and at least as long
    as its longest program, which should be done by the middle of the launch.

    Args:
        num_frames, num_tokens, num_ref_tokens: F, N and M.
        heads: B·H.
        block: rows per program.
        slots: programs that run at the same time.
        ref_queries: whether the reference asks as well; its keys and values do not meet their own queries otherwise.
    """
    num_ref_rows = num_ref_tokens if ref_queries else 0
    reference_tiles, frame_tiles = triton.cdiv(num_ref_tokens, block), triton.cdiv(num_tokens, block)
    frame_load = heads * num_frames * frame_tiles * (num_tokens + num_ref_rows)

    def duration(groups: int) -> float:
        longest = num_ref_rows + triton.cdiv(num_frames, groups) * num_tokens
        reference_load = heads * reference_tiles * (groups * num_ref_rows + num_frames * num_tokens)
        return max((frame_load + reference_load) / slots, 2 * longest)

    candidates = {min(2**exponent, num_frames) for exponent in range(num_frames.bit_length() + 1)}
    return min(sorted(candidates), key=duration)
