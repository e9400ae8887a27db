"""Compiles every variant of the attention kernels without a GPU and reports what it became: `python bench/static.py`.

For each architecture, head dim and variant (whole, small and partial tiles, split or not, with and without queries of
the reference, q, k and v fused or separate): registers and spilled stack per thread, shared memory, the matrix
instruction, the instructions of the inner loop, and how many programs fit on a multiprocessor. Exits with 1 when a
variant does not compile or spills more than 16 bytes, or on sm_90 does without wgmma or waits for every single one.

    python bench/static.py --front-end          every variant through Triton's front end alone, in every dtype: a minute
    python bench/static.py --usual              only what Stable Diffusion runs: whole tiles, no bias
    python bench/static.py --mode pisa --layout separate --output bench/results

With --output every result is on disk as soon as it is known, and the next run compiles what is missing alone: all of it
takes hours of a core.

The machine's own Triton is used. Another version is tried from a folder of its own, which nothing else sees:

    pip install --no-deps --target /tmp/triton-3.6 triton==3.6.0
    PYTHONPATH=/tmp/triton-3.6 python bench/static.py
"""

import argparse
import hashlib
import itertools
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, astuple, dataclass, fields, replace
from functools import cache
from pathlib import Path

if __name__ == "__main__":  # not where it is imported by a test, whose kernels are interpreted
    os.environ.pop("TRITON_INTERPRET", None)  # read when triton is imported

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from variants import LAYOUTS, MODES, TYPE_NAMES, Variant, attention_variants, front_end
from videomaker.kernels.pisa import backward, forward, primitives

GPU_BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
MAX_STACK = 16  # bytes; stored before the loop and loaded after it, they cost nothing
MATRIX_MNEMONIC = re.compile(r"(?<![.\w])\w*MMA")  # HFMA2.MMA moves a constant
MATRIX_INSTRUCTIONS = ("wgmma.mma_async", "tcgen05.mma", "mma.sync")
# Head dims by their kind: one tile or two, with columns past the head or without, smaller than any dot.
FRONT_END_HEAD_DIMS = (40, 64, 80, 37, 8)


@dataclass(frozen=True)
class Chip:
    """A compile target and what its multiprocessor holds (CUDA programming guide, compute capabilities)."""

    name: str
    target: GPUTarget
    shared_kib: int
    max_warps: int
    family: str


CHIPS = [
    Chip("sm_80", GPUTarget("cuda", 80, 32), 164, 64, "sm_80"),
    Chip("sm_86", GPUTarget("cuda", 86, 32), 100, 48, "sm_89"),
    Chip("sm_89", GPUTarget("cuda", 89, 32), 100, 48, "sm_89"),
    Chip("sm_90", GPUTarget("cuda", 90, 32), 228, 64, "sm_90"),
    Chip("sm_100", GPUTarget("cuda", 100, 32), 228, 64, "sm_100"),
    Chip("sm_120", GPUTarget("cuda", 120, 32), 100, 48, "sm_120"),
    Chip("gfx942", GPUTarget("hip", "gfx942", 64), 64, 32, "gfx9"),
]


@dataclass(frozen=True)
class Report:
    """What one variant became; `stack` and `shared` in bytes, `programs` per multiprocessor (None where not known)."""

    chip: str
    kernel: str
    head_dim: int
    mode: str
    tiles: str
    layout: str
    config: str
    registers: int = 0
    stack: int = 0
    shared: int = 0
    matrix: str = "-"
    loop: int = 0  # instructions of the inner loop, per warp and pair of tiles
    issued: int = 0  # the same of all warps for 1,024 pairs of query and key, so that tiles of any size compare
    programs: int | None = None
    problem: str = ""


def describe(chip: Chip, variant: Variant) -> Report:
    """What is known of a variant before it is compiled."""
    config = variant.chosen(chip.family)
    cap = f" cap {config.max_registers}" if config.max_registers and chip.target.backend == "cuda" else ""
    ways = " dot" * config.sum_by_dot + " unsplit" * (not config.split_values)
    tile = f"{config.block_q}x{config.block_k} w{config.num_warps} s{config.num_stages}{cap}{ways}"
    tiles = f"{variant.tiles}{', split' * variant.split}"
    tile = tile if uses_dots(variant) else "-"
    return Report(chip.name, variant.kernel, variant.head_dim, variant.mode, tiles, variant.layout, tile)


def uses_dots(variant: Variant) -> bool:
    """Whether it is one of the attention kernels."""
    return variant.kernel not in ("row_statistics", "sum_groups")


def examine(chip: Chip, variant: Variant) -> Report:
    """Compiles one variant and says what is wrong with it, if anything."""
    config, known = variant.chosen(chip.family), describe(chip, variant)
    options = config.launch_options()
    if chip.target.backend == "hip":
        options.pop("maxnreg", None)
    try:
        kernel = triton.compile(variant.source(chip.family), target=chip.target, options=options)
    except Exception as error:
        return replace(known, problem=f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:120]}")
    usage = nvidia_usage(kernel) if chip.target.backend == "cuda" else amd_usage(kernel)
    serialised = usage.pop("serialised")
    pairs = config.block_q * config.block_k
    issued = round(1024 * usage["loop"] * config.num_warps / pairs) if uses_dots(variant) else 0
    shared = kernel.metadata.shared
    problems = {
        "spills": usage["stack"] > MAX_STACK,
        "no wgmma": chip.name == "sm_90" and uses_dots(variant) and usage["matrix"] != "wgmma.mma_async",
        "serialised wgmma": serialised,
        "too much shared memory": shared > (chip.shared_kib - 1) * 1024,
    }
    programs = programs_per_multiprocessor(chip, usage["registers"], shared, config.num_warps)
    problem = ", ".join(problem for problem, found in problems.items() if found)
    return replace(known, **usage, issued=issued, shared=shared, programs=programs, problem=problem)


def nvidia_usage(kernel: CompiledKernel) -> dict[str, object]:
    """Registers, stack, matrix instruction, inner loop and whether wgmma is serialised, from the machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage, assembly = (
            subprocess.run([GPU_BINARIES / tool, *flags, file.name], capture_output=True, text=True, check=True).stdout
            for tool, flags in (("cuobjdump", ["--dump-resource-usage"]), ("nvdisasm", ["-c"]))
        )
    numbers = {name: int(value) for name, value in re.findall(r"(REG|STACK):(\d+)", usage)}
    matrix = next((name for name in MATRIX_INSTRUCTIONS if name in kernel.asm["ptx"]), "-")
    # Short of registers, ptxas waits after every wgmma: each then has a WARPGROUP.ARRIVE of its own.
    serialised = matrix == "wgmma.mma_async" and assembly.count("WARPGROUP.ARRIVE") >= assembly.count("HGMMA")
    found = {"registers": numbers["REG"], "stack": numbers["STACK"], "matrix": matrix, "loop": inner_loop(assembly)}
    return found | {"serialised": serialised}


def inner_loop(assembly: str) -> int:
    """Instructions of the longest innermost loop with a matrix instruction in it; 0 without one."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in assembly.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?);", line):
            instructions.append(instruction[1])
    loops = []
    for end, instruction in enumerate(instructions):
        target = re.search(r"BRA.*`\((\.L_x_\d+)\)", instruction)
        start = labels.get(target[1], end + 1) if target else end + 1
        if start <= end and any(MATRIX_MNEMONIC.search(x) for x in instructions[start : end + 1]):
            loops.append((start, end))
    innermost = [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    return max((end - start + 1 for start, end in innermost), default=0)


def amd_usage(kernel: CompiledKernel) -> dict[str, object]:
    """The same from the AMD assembly; AGPRs hold accumulators and count as registers."""
    assembly = kernel.asm["amdgcn"]
    numbers = {name: int(value) for name, value in re.findall(r"\.(\w+):\s+(\d+)", assembly)}
    return {
        "registers": numbers["vgpr_count"],
        "stack": numbers["private_segment_fixed_size"],
        "matrix": "v_mfma" if "v_mfma" in assembly else "-",
        "loop": 0,
        "serialised": False,
    }


def programs_per_multiprocessor(chip: Chip, registers: int, shared: int, num_warps: int) -> int | None:
    """How many programs registers (allotted per warp in units of 256), shared memory and warps leave room for."""
    if chip.target.backend == "hip":
        return None
    warp_registers = -(-registers * 32 // 256) * 256
    by_registers = 65536 // warp_registers // num_warps
    by_shared = chip.shared_kib * 1024 // (shared + 1024)  # the system takes 1 KiB of each program
    return min(by_registers, by_shared, chip.max_warps // num_warps)


def front_end_variants() -> Iterator[Variant]:
    """What the front end must accept: every kernel and flag, every dtype, every kind of head, and huge strides.

    Small tiles are left out: they differ from whole ones in sizes, not in types.
    """
    usual = [(head_dim, dtype, False) for head_dim, dtype in itertools.product(FRONT_END_HEAD_DIMS, TYPE_NAMES)]
    for head_dim, dtype, large_strides in [*usual, (40, torch.bfloat16, True)]:
        for variant in attention_variants(head_dim, dtype, layouts=("separate",)):
            if "small" not in variant.tiles:
                yield replace(variant, large_strides=large_strides)


def sweep_front_end(chips: list[Chip], most: int | None = None) -> list[str]:
    """Failures of the front end. Every variant goes to one chip, in turn, so that each kind meets each chip.

    The front end knows of a chip only which dots and dtypes it has; the first and every eleventh variant go to all.
    With `most`, that many variants, evenly spread.
    """
    variants = list(front_end_variants())
    step = max(1, len(variants) // most) if most else 1
    failures, done = [], 0
    for number, variant in enumerate(variants[::step]):
        for chip in chips if number % 11 == 0 else [chips[number % len(chips)]]:
            problem = front_end(variant, chip.target, chip.family)
            failures += [f"{chip.name}, {variant}: {problem}"] if problem else []
            done += 1
    print(f"{done} combinations through the front end of Triton {triton.__version__}, {len(failures)} failed")
    return failures


def markdown(reports: list[Report]) -> str:
    """The reports as one table."""
    names = [field.name for field in fields(Report)]
    rows = [names, ["---"] * len(names)]
    rows += [["" if value is None else str(value) for value in asdict(report).values()] for report in reports]
    lines = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return f"Triton {triton.__version__}, bfloat16, 8 heads; `python bench/static.py` makes this table.\n\n{lines}\n"


def jobs(options: argparse.Namespace) -> list[tuple[Chip, Variant]]:
    """What to compile."""
    chips = [next(chip for chip in CHIPS if chip.name == name) for name in options.arch]
    if options.usual:
        options.layout, options.mode = ["separate"], ["pisa"]
    variants = [variant for head_dim in options.head_dim for variant in attention_variants(head_dim)]
    variants = [v for v in variants if v.layout in options.layout and v.mode in options.mode]
    variants = [v for v in variants if v.tiles != "partial" or not options.usual]
    return [(chip, v) for chip, v in itertools.product(chips, variants) if v.exists(chip.family)]


class Results:
    """What is known of every variant, in a file of JSON and one of Markdown beside it, or in memory alone."""

    def __init__(self, output: Path | None) -> None:
        is_file = output is not None and output.suffix == ".json"
        self.path = output if is_file else output and output / f"static-{triton.__version__}.json"
        self.reports: list[Report] = []
        self.sources = sources_digest()
        if self.path and self.path.exists():
            document = json.loads(self.path.read_text())
            if document["sources_sha256"] == self.sources:  # of other kernels nothing is known
                self.reports = [Report(**fields) for fields in document["kernels"]]
                self.reports = [report for report in self.reports if in_table(report)]

    def add(self, report: Report) -> None:
        """Keep one more."""
        self.reports.append(report)
        if self.path:
            for path, text in ((self.path, self.json()), (self.path.with_suffix(".md"), markdown(self.reports))):
                temporary = path.with_name(f"{path.name}.{os.getpid()}")
                temporary.write_text(text)
                temporary.replace(path)

    def json(self) -> str:
        """One document, a line for each kernel."""
        rows = ",\n".join(json.dumps(asdict(report)) for report in self.reports)
        head = json.dumps(
            {"triton": triton.__version__, "torch": torch.__version__, "sources_sha256": self.sources}
        ).rstrip("}")
        return f'{head}, "kernels": [\n{rows}\n]}}\n'


def sources_digest() -> str:
    """Of the kernels; their tiles stand in the reports."""
    digest = hashlib.sha256()
    for module in (backward, forward, primitives):
        digest.update(Path(module.__file__).read_bytes())
    return digest.hexdigest()


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [chip.name for chip in CHIPS]
    parser.add_argument("--arch", nargs="+", choices=names, default=names)
    parser.add_argument("--head-dim", nargs="+", type=int, default=[40, 64, 80, 128, 160], metavar="D")
    parser.add_argument("--mode", nargs="+", choices=MODES, default=MODES, help="what the reference does")
    parser.add_argument("--layout", nargs="+", choices=LAYOUTS, default=LAYOUTS, help="of q, k and v")
    parser.add_argument("--usual", action="store_true", help="only whole tiles of separate q, k and v, with no bias")
    parser.add_argument("--front-end", action="store_true", help="no machine code: only whether Triton takes them")
    parser.add_argument("--most", type=int, metavar="COUNT", help="at most so many variants for --front-end")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="N", help="processes side by side")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    parser.add_argument("--output", type=Path, metavar="FOLDER",
                        help="keep static-VERSION.md and .json there; or FILE.json")  # fmt: skip
    return parser.parse_args()


def identity(chip: Chip, variant: Variant) -> tuple[object, ...]:
    """What tells a variant's report from the others."""
    report = describe(chip, variant)
    return report.chip, report.kernel, report.head_dim, report.mode, report.tiles, report.layout, report.config


@cache
def identities(name: str, head_dim: int) -> set[tuple[object, ...]]:
    """Of all reports of a chip and head dim that the table leads to."""
    chip = next(known for known in CHIPS if known.name == name)
    return {identity(chip, variant) for variant in attention_variants(head_dim) if variant.exists(chip.family)}


def in_table(report: Report) -> bool:
    """Whether the table still leads to such a variant: its tiles may have changed."""
    return astuple(report)[:7] in identities(report.chip, report.head_dim)


def main() -> int:
    """Prints a table; with --json one JSON document instead; --output writes and continues both."""
    options = parse()
    if options.front_end:
        failures = sweep_front_end([chip for chip in CHIPS if chip.name in options.arch], options.most)
        print("\n".join(failures))
        return int(bool(failures))
    results = Results(options.output)
    known = {astuple(report)[:7] for report in results.reports}
    work = [job for job in jobs(options) if identity(*job) not in known]
    with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for report in pool.map(examine, *zip(*work, strict=True)) if work else ():
            results.add(report)
            label = f"{report.chip} D={report.head_dim} {report.kernel} {report.mode} {report.tiles} {report.layout}"
            print(f"{label}: {report.problem or 'ok'}", file=sys.stderr, flush=True)
    print(results.json() if options.json else markdown(results.reports))
    return int(any(report.problem for report in results.reports))


if __name__ == "__main__":
    sys.exit(main())
