"""Everything that needs a GPU, in one command under nine minutes: `make gpu`.

Where diffusers is installed, at most five more minutes go to the compiled pipeline at full size.

Stages run one after the other, each in a process and under a time limit of its own, so that the failure of one leaves
the others' results. Writes bench/results/<gpu>-<date>.json and, with matplotlib, a plot beside it. Exit code 0 when
every stage passed, 1 when one failed, 2 when there is no GPU. `--dry-run` walks through the stages with tiny shapes on
a CPU, the kernels in Triton's interpreter.
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path

BENCH = Path(__file__).resolve().parent
CHECKS = str(BENCH / "gpu_checks.py")
FUZZ_SHAPES = 200
# Seconds; together below nine minutes.
LIMITS = {"tests": 110, "shapes": 70, "fuzz": 70, "features": 45, "memcheck": 50, "racecheck": 50, "attn": 140}
INFERENCE_LIMIT = 300  # compiles Stable Diffusion 1.5 three times
DRY_RUN_LIMIT = 600  # the interpreter is slow, and so are the machines of a CI
ATTN_LAST_CASE = 45  # seconds that a case of bench/attn.py, begun within its budget, may still take


def main(arguments: list[str] | None = None) -> int:
    """Entry of `python bench/gpu.py`."""
    options = parse(arguments)
    device = find_device(options)
    if device is None:
        print("make gpu needs a CUDA device that torch can use, and this machine has none.", file=sys.stderr)
        print("Without one: make test, or python bench/gpu.py --dry-run.", file=sys.stderr)
        return 2
    start = time.time()
    with tempfile.TemporaryDirectory() as folder:
        stages = {name: run_stage(name, Path(folder) / f"{name}.json", options) for name in options.stages}
    report = {"device": device, "dry_run": options.dry_run, "seconds": round(time.time() - start), "stages": stages}
    write(report, options.output)
    for name, stage in stages.items():
        print(f"{name:<10}{stage['status']:<9}{stage['seconds']:>5.0f} s  {stage['summary'][:150]}")
    return 1 if any(stage["status"] == "FAILED" for stage in stages.values()) else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--stages", nargs="+", choices=[*LIMITS, "inference"], default=default_stages(), help="only these"
    )
    parser.add_argument("--output", type=Path, default=BENCH / "results", metavar="DIR")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on a CPU, in Triton's interpreter")
    return parser.parse_args(arguments)


def default_stages() -> list[str]:
    """All stages that this Python has the packages for."""
    return [*LIMITS, *(["inference"] if importlib.util.find_spec("diffusers") else [])]


def find_device(options: argparse.Namespace) -> str | None:
    """The GPU's name, asked for in a process of its own so that this one holds no CUDA context."""
    if options.dry_run:
        return "dry run"
    code = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    found = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False)
    return found.stdout.strip().rpartition("\n")[2] or None


def command(name: str, record: Path, options: argparse.Namespace) -> list[str] | None:
    """What a stage runs; None when a program that it needs is not installed."""
    dry_run = ["--dry-run"] * options.dry_run
    if name in ("memcheck", "racecheck"):
        program = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
        if program is None and not options.dry_run:
            return None
        sanitizer = [] if options.dry_run else [program, "--tool", name, "--error-exitcode", "9"]
        return [*sanitizer, sys.executable, CHECKS, "small", *dry_run]
    if name == "attn":
        budget = str(LIMITS["attn"] - ATTN_LAST_CASE)
        attn = [sys.executable, str(BENCH / "attn.py"), "--json", str(record), "--budget", budget, "--seconds", "0.2"]
        return [*attn, "--device", "cpu", "--case", "1,2,16,16,16", "--seconds", "0.01"] if options.dry_run else attn
    if name == "inference":
        inference = [sys.executable, str(BENCH / "inference.py"), "--json", str(record)]
        tiny = ["--device", "cpu", "--paths", "ours", "--frames", "2", "--steps", "1", "--seconds", "0"]
        full = ["--profile", "--seconds", "1", "--budget", str(INFERENCE_LIMIT - 100)]
        return [*inference, *(tiny if options.dry_run else full)]
    count = "4" if options.dry_run else str(FUZZ_SHAPES)
    fuzz = ["--count", count, "--seconds", str(LIMITS["fuzz"] - 15)] if name == "fuzz" else []
    return [sys.executable, CHECKS, name, "--record", str(record), *fuzz, *dry_run]


def run_stage(name: str, record: Path, options: argparse.Namespace) -> dict[str, object]:
    """Run one stage in a process, killed with its children at the time limit; what it printed last is kept."""
    limit = DRY_RUN_LIMIT if options.dry_run else LIMITS.get(name, INFERENCE_LIMIT)
    print(f"\n=== {name}, at most {limit} s ===", flush=True)
    arguments, start = command(name, record, options), time.time()
    if arguments is None:
        print("compute-sanitizer is not installed")
        return {"status": "skipped", "seconds": 0.0, "summary": "compute-sanitizer is not installed"}
    code, expired, tail = run_limited(arguments, limit, environment(name, options))
    details = json.loads(record.read_text()) if record.exists() else None
    summary = next((line for line in reversed(tail) if line.strip()), "")
    stage = {"status": "passed", "seconds": round(time.time() - start, 1), "summary": summary, "details": details}
    if code != 0:
        why = f"stopped at the limit of {limit} s" if expired else f"exit code {code}"
        stage |= {"status": "FAILED", "summary": f"{why}: {summary}", "output": tail}
    return stage


def environment(name: str, options: argparse.Namespace) -> dict[str, str]:
    """Variables of a stage's process."""
    variables = os.environ | {"PYTHONUNBUFFERED": "1"}
    if options.dry_run:
        variables |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    if name == "memcheck":
        variables["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # torch's pool would hide accesses beyond a tensor
    return variables


def run_limited(arguments: list[str], limit: float, variables: dict[str, str]) -> tuple[int, bool, list[str]]:
    """Exit code, whether the limit was reached, and the last lines of the output, which is shown as it comes."""
    process = subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=BENCH.parent,
        env=variables,
        start_new_session=True,
    )
    expired = threading.Event()
    timer = threading.Timer(limit, lambda: (expired.set(), kill(process)))
    timer.start()
    tail: deque[str] = deque(maxlen=40)
    try:
        for line in process.stdout:
            if line.startswith('{"environment"'):  # bench/attn.py's report, which is in its record
                continue
            print(line, end="", flush=True)
            tail.append(line.rstrip())
        code = process.wait()
    finally:
        timer.cancel()
        kill(process)
    return code, expired.is_set(), list(tail)


def kill(process: subprocess.Popen) -> None:
    """End a stage and all processes that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def write(report: dict[str, object], folder: Path) -> None:
    """The results file, complete or absent, and the plot."""
    name = re.sub(r"[^a-z0-9]+", "-", report["device"].lower()).strip("-")
    file = folder / f"{name}-{time.strftime('%Y-%m-%d-%H%M%S')}.json"
    folder.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(report, indent=1) + "\n")
    temporary.replace(file)
    print(f"\nwrote {file}")
    attn = report["stages"].get("attn", {}).get("details")
    if attn and importlib.util.find_spec("matplotlib"):
        from attn import plot

        plot(attn, file.with_suffix(".png"))
        print(f"wrote {file.with_suffix('.png')}")


if __name__ == "__main__":
    sys.exit(main())
