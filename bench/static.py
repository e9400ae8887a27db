"""Compiles every attention kernel without a GPU and reports what it became: `python bench/static.py`.

For each architecture and head dim: registers and spilled stack per thread, shared memory, the matrix instruction, and
how many programs fit on a multiprocessor. Exits with 1 when a kernel spills, or on sm_90 does without wgmma or waits
for every single one. bfloat16, whole tiles, q, k and v as views of one fused projection of 8 heads.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)  # read when triton is imported

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from videomaker.kernels.pisa import backward, forward, primitives
from videomaker.kernels.pisa.configs import Config, head_widths, table_config

HEADS = 8
FP32_POINTERS = {"lse", "partials", "row_lse", "row_delta", "k_partials", "v_partials"}
GPU_BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


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
    Chip("sm_89", GPUTarget("cuda", 89, 32), 100, 48, "sm_89"),
    Chip("sm_90", GPUTarget("cuda", 90, 32), 228, 64, "sm_90"),
    Chip("sm_100", GPUTarget("cuda", 100, 32), 228, 64, "sm_100"),
    Chip("sm_120", GPUTarget("cuda", 120, 32), 100, 48, "sm_120"),
    Chip("gfx942", GPUTarget("hip", "gfx942", 64), 64, 32, "gfx9"),
]


@dataclass(frozen=True)
class Report:
    """What one kernel became; `stack` and `shared` in bytes, `programs` per multiprocessor (None where not known)."""

    chip: str
    kernel: str
    head_dim: int
    tile: str
    registers: int
    stack: int
    shared: int
    matrix: str
    programs: int | None
    problem: str


def sources(head_dim: int, family: str) -> Iterator[tuple[str, triton.JITFunction, dict[str, object], Config]]:
    """(name, kernel, compile-time arguments, configuration) of every kernel for one head dim."""
    main, tail = head_widths(head_dim)
    widths = {"MAIN": main, "TAIL": tail}
    for name in ("forward", "forward_training"):
        config = table_config(name, family, head_dim, torch.bfloat16)
        pv_main, pv_tail = head_widths(head_dim, split=config.split_values)
        constants = {"QK_MAIN": main, "QK_TAIL": tail, "PV_MAIN": pv_main, "PV_TAIL": pv_tail}
        constants["SAVE"] = name == "forward_training"
        yield name, forward.pisa_forward, constants | attention_constants(config, head_dim), config
    for kernel in ("backward_query", "backward_key"):
        config = table_config(kernel, family, head_dim, torch.bfloat16)
        function = getattr(backward, f"pisa_{kernel}")
        yield kernel, function, widths | attention_constants(config, head_dim), config
    statistics = {"H": HEADS, "D": head_dim, "BLOCK": 64} | widths
    yield "row_statistics", backward.pisa_row_statistics, statistics, Config(64, 0)
    yield "sum_groups", primitives.sum_groups, {"BLOCK": 1024}, Config(1024, 0)


def attention_constants(config: Config, head_dim: int) -> dict[str, object]:
    """Compile-time arguments that the attention kernels share."""
    strides = dict.fromkeys(("STRIDE_Q", "STRIDE_K", "STRIDE_V"), 3 * HEADS * head_dim)
    blocks = {"BLOCK_Q": config.block_q, "BLOCK_K": config.block_k}
    flags = {"EVEN": True, "SPLIT": False, "PRECISION": "ieee", "ALIGN": 8}
    return {"H": HEADS, "D": head_dim} | strides | blocks | flags


def compile_kernel(
    function: triton.JITFunction, constants: dict[str, object], config: Config, target: GPUTarget
) -> CompiledKernel:
    """Compiles as a launch would: pointers and ALIGN known to be aligned, integers not specialised."""

    def kind(name: str) -> str:
        if name in constants:
            return "constexpr"
        if name.startswith("scale"):
            return "fp32"
        if name.startswith(("num_", "stride_")) or name == "size":
            return "i32"
        return "*fp32" if name in FP32_POINTERS else "*bf16"

    signature = {name: kind(name) for name in function.arg_names}
    aligned = {
        (i,): [["tt.divisibility", 16]] for i, name in enumerate(function.arg_names) if signature[name][0] == "*"
    }
    options = config.launch_options()
    if target.backend == "hip":
        options.pop("maxnreg", None)
    return triton.compile(ASTSource(function, signature, constants, aligned), target=target, options=options)


def nvidia_usage(kernel: CompiledKernel) -> dict[str, object]:
    """Registers, stack, matrix instruction and whether wgmma is serialised, from the machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage, assembly = (
            subprocess.run([GPU_BINARIES / tool, *flags, file.name], capture_output=True, text=True, check=True).stdout
            for tool, flags in (("cuobjdump", ["--dump-resource-usage"]), ("nvdisasm", ["-c"]))
        )
    numbers = {name: int(value) for name, value in re.findall(r"(REG|STACK):(\d+)", usage)}
    instructions = ("wgmma.mma_async", "tcgen05.mma", "mma.sync")
    matrix = next((name for name in instructions if name in kernel.asm["ptx"]), "-")
    # Short of registers, ptxas waits after every wgmma: each then has a WARPGROUP.ARRIVE of its own.
    serialised = matrix == "wgmma.mma_async" and assembly.count("WARPGROUP.ARRIVE") >= assembly.count("HGMMA")
    return {"registers": numbers["REG"], "stack": numbers["STACK"], "matrix": matrix, "serialised": serialised}


def amd_usage(kernel: CompiledKernel) -> dict[str, object]:
    """The same from the AMD assembly; AGPRs hold accumulators and count as registers."""
    assembly = kernel.asm["amdgcn"]
    numbers = {name: int(value) for name, value in re.findall(r"\.(\w+):\s+(\d+)", assembly)}
    return {
        "registers": numbers["vgpr_count"],
        "stack": numbers["private_segment_fixed_size"],
        "matrix": "v_mfma" if "v_mfma" in assembly else "-",
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


def examine(
    chip: Chip, name: str, function: triton.JITFunction, constants: dict[str, object], config: Config, head_dim: int
) -> Report:
    """Compiles one kernel and says what is wrong with it, if anything."""
    kernel = compile_kernel(function, constants, config, chip.target)
    usage = nvidia_usage(kernel) if chip.target.backend == "cuda" else amd_usage(kernel)
    shared = kernel.metadata.shared
    uses_dots = "PRECISION" in constants
    problems = {
        "spills": usage["stack"] > 0,
        "no wgmma": chip.name == "sm_90" and uses_dots and usage["matrix"] != "wgmma.mma_async",
        "serialised wgmma": usage["serialised"],
        "too much shared memory": shared > (chip.shared_kib - 1) * 1024,
    }
    tile = f"{config.block_q}x{config.block_k} w{config.num_warps} s{config.num_stages}" if uses_dots else "-"
    return Report(
        chip=chip.name,
        kernel=name,
        head_dim=head_dim,
        tile=tile,
        registers=usage["registers"],
        stack=usage["stack"],
        shared=shared,
        matrix=usage["matrix"],
        programs=programs_per_multiprocessor(chip, usage["registers"], shared, config.num_warps),
        problem=", ".join(problem for problem, found in problems.items() if found),
    )


def markdown(reports: list[Report]) -> str:
    """The reports as one table."""
    names = [field.name for field in fields(Report)]
    rows = [names, ["---"] * len(names)]
    rows += [["" if value is None else str(value) for value in asdict(report).values()] for report in reports]
    lines = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return (
        f"Triton {triton.__version__}, bfloat16, {HEADS} heads; `python bench/static.py` makes this table.\n\n{lines}\n"
    )


def main() -> int:
    """Prints a table; with --json one JSON document instead; --output writes static.md and static.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", choices=[chip.name for chip in CHIPS], default=[c.name for c in CHIPS])
    parser.add_argument("--head-dim", nargs="+", type=int, default=[40, 80, 160], metavar="D")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="also write static.md and static.json there")
    options = parser.parse_args()
    reports = []
    for chip in (chip for chip in CHIPS if chip.name in options.arch):
        for head_dim in options.head_dim:
            for source in sources(head_dim, chip.family):
                reports.append(examine(chip, *source, head_dim))
                print(f"{chip.name} D={head_dim} {source[0]}: {reports[-1].problem or 'ok'}", file=sys.stderr)
    document = {"triton": triton.__version__, "kernels": [asdict(report) for report in reports]}
    print(json.dumps(document) if options.json else markdown(reports))
    if options.output:
        (options.output / "static.md").write_text(markdown(reports))
        (options.output / "static.json").write_text(json.dumps(document, indent=1) + "\n")
    return int(any(report.problem for report in reports))


if __name__ == "__main__":
    sys.exit(main())
