"""Everything that needs a GPU, in stages of cases: `make gpu`, or `python bench/gpu.py --out DIR`.

    python bench/gpu.py --deadline 530 --resume             what is left, until all is done or time is up
    python bench/gpu.py --resume --copy $OUT/run.json       the result there, too, where only single files come back
    python bench/gpu.py --stages parity,attention           only these; --cases TEXT: only those named so
    python bench/gpu.py --dry-run --out DIR                 the same walk on a CPU: tiny shapes, Triton's interpreter

Every case runs in a process and under a time limit of its own, so that a crash, or a memory fault that poisons its
CUDA context, costs that case alone. `run.json` in the folder of --out is the whole result and the whole state: it is
written after every case, and --resume needs nothing else. On another GPU the run starts anew beside what is known.
Nothing is installed and no network is used; a stage whose packages are missing is skipped with the reason. A case that
is stopped at its limit is tried once more by --resume, when what it compiled is known; one that failed by --again.
Exit code 0 when all is done and right, 3 when cases are left for --resume, failures or not, 1 when none is left and one
failed, 2 when nothing could be begun.
"""

import argparse
import ctypes
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from gpu_stages import STAGES, TUNED, Case, Device, cases_of

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
LIBC = ctypes.CDLL(None)
DONE = ("passed", "FAILED")  # other outcomes are tried again by --resume
LAST_WORDS = 20  # seconds
LEFT = ("left", "stopped")


@dataclass
class Run:
    """One run: its options, its device and what is known so far, which is on disk after every change."""

    folder: Path
    copy: Path | None
    device: Device
    deadline: float  # by time.monotonic
    environment: dict[str, str]  # of the cases' processes
    report: dict = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    processes: set[subprocess.Popen] = field(default_factory=set)
    is_ending: bool = False

    @property
    def path(self) -> Path:
        """The result."""
        return self.folder / "run.json"

    def outcome(self, case: Case) -> dict:
        """What is known of a case."""
        return self.report["stages"].get(case.stage, {}).get(case.name, {})

    def is_done(self, stage: str, name: str) -> bool:
        """Whether nothing of a case is left."""
        return self.report["stages"].get(stage, {}).get(name, {}).get("status") in DONE

    def record(self, case: Case, **outcome: object) -> None:
        """Keep a case's outcome and say it."""
        with self.lock:
            self.report["stages"].setdefault(case.stage, {})[case.name] = outcome
            self.write()
        seconds, summary = outcome.get("seconds", 0), str(outcome.get("summary", ""))[:150]
        print(f"{outcome['status']:<8}{seconds:>6.0f} s  {case.stage}: {case.name}  {summary}", flush=True)

    def write(self) -> None:
        """The report to disk, whole or not at all."""
        text = json.dumps(self.report, indent=1) + "\n"
        for path in filter(None, (self.path, self.copy)):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f"{path.name}.tmp")
            temporary.write_text(text)
            temporary.replace(path)


def main(arguments: list[str] | None = None) -> int:
    """Entry of `python bench/gpu.py`."""
    start = time.monotonic()  # of the whole command: to import torch and find the device takes up to a minute
    options = parse(arguments)
    # A kill by a job's limit ends the case that runs, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    environment = cases_environment(options)
    device = Device.find(environment, dry_run=options.dry_run)
    if device is None:
        print("make gpu needs a CUDA device that torch can use, and this machine has none.", file=sys.stderr)
        print("Without one: make test, or python bench/gpu.py --dry-run.", file=sys.stderr)
        return 2
    run = Run(options.out, options.copy, device, start + options.deadline, environment)
    if why := begin(run, options):
        print(why, file=sys.stderr)
        return 2
    cases = [x for stage in options.stages for x in cases_of(stage, device, run.folder) if options.cases in x.name]
    if options.again:
        forget_failures(run, cases)
    for turn, stage in itertools.product(sorted({case.turn for case in cases}), options.stages):
        stage_cases = [case for case in cases if (case.turn, case.stage) == (turn, stage)]
        run_stage(run, stage_cases, 1 if options.dry_run else STAGES[stage])
    return conclude(run, cases)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", "--output", type=Path, default=ROOT / "build" / "gpu", metavar="DIR")
    parser.add_argument("--copy", type=Path, metavar="FILE", help="write the whole result here, too, after every case")
    parser.add_argument("--stages", type=_stages, default=list(STAGES), metavar="A,B", help=", ".join(STAGES))
    parser.add_argument("--cases", default="", metavar="TEXT", help="only cases with this in their names")
    parser.add_argument("--resume", action="store_true", help="go on with a run in DIR: what is done stays")
    parser.add_argument("--again", action="store_true", help="with --resume: what failed, too, as after a mend")
    parser.add_argument("--deadline", type=float, default=float("inf"), metavar="SECONDS", help="for the whole command")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on a CPU, in Triton's interpreter")
    options = parser.parse_args(arguments)
    options.out = options.out.absolute()
    return options


def _stages(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in STAGES]:
        raise argparse.ArgumentTypeError(f"no stage {', '.join(unknown)}: choose from {', '.join(STAGES)}")
    return [name for name in STAGES if name in names]


def begin(run: Run, options: argparse.Namespace) -> str | None:
    """Fill the report, from disk when it goes on; why it cannot."""
    if run.path.exists() and not options.resume:
        return f"{run.path} holds a run: go on with it by --resume, or give another --out"
    found = json.loads(run.path.read_text()) if run.path.exists() else {"device": run.device.name, "stages": {}}
    stages = found.get("other_devices", {}) | {found["device"]: found["stages"]}
    here = stages.pop(run.device.name, {})
    run.report = {"dry_run": options.dry_run, "device": run.device.name, "stages": here, "other_devices": stages}
    restore_tuned(run)
    run.write()  # so that a run that is killed within its first case can be resumed
    return None


def forget_failures(run: Run, cases: list[Case]) -> None:
    """Failed cases are tried again from their beginning."""
    for case in cases:
        if run.outcome(case).get("status") == "FAILED":
            del run.report["stages"][case.stage][case.name]
            case.record.unlink(missing_ok=True)


def cases_environment(options: argparse.Namespace) -> dict[str, str]:
    """Variables of every case's process: where the package lies, and that nothing is fetched."""
    variables = os.environ | {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    # What is tuned stays in this run's folder: the other stages measure the table.
    variables["XDG_CACHE_HOME"] = str(options.out / "untuned")
    if options.dry_run:
        variables |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    code = "import importlib.util as u, sys; sys.exit(u.find_spec('videomaker.kernels') is None)"  # no torch yet
    if subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, check=False).returncode:
        place = lay_out(options.out / "package")
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, [str(place), variables.get("PYTHONPATH")]))
    return variables


def lay_out(place: Path) -> Path:
    """Links in `place` that look like the installed package, for a Python that has not got it."""
    package = place / "videomaker"
    package.mkdir(parents=True, exist_ok=True)
    links = {child.name: child for child in (ROOT / "videomaker").iterdir() if child.name != "__pycache__"}
    for name, target in {**links, "kernels": ROOT / "kernels", "train": ROOT / "train"}.items():
        with suppress(FileExistsError):
            (package / name).symlink_to(target)
    return place


def run_stage(run: Run, cases: list[Case], workers: int) -> None:
    """The cases that are not done yet; several at a time where nothing is timed, for compiling keeps a core busy."""
    left = [case for case in cases if not run.is_done(case.stage, case.name)]
    left.sort(key=lambda case: "stops" in run.outcome(case))  # what was stopped may be again
    with ThreadPoolExecutor(workers) as pool:
        try:
            for done in [pool.submit(run_case, run, case) for case in left]:
                done.result()
        except BaseException:  # Ctrl-C or SIGTERM: what runs is not done, and tried again by --resume
            run.is_ending = True
            for process in list(run.processes):
                kill(process)
            raise


def run_case(run: Run, case: Case) -> None:
    """One case in a process, unless something that it needs is missing or it does not fit in what is left of time."""
    if run.is_ending:
        return
    if case.missing:
        run.record(case, status="skipped", summary=case.missing)
        return
    left = run.deadline - time.monotonic()
    waits = [name for name in case.after if not run.is_done(case.stage, name)]
    if waits or left < case.limit:
        why = f"after {waits[0]}" if waits else f"needs up to {case.limit} s, {max(left, 0):.0f} s were left"
        run.record(case, **run.outcome(case) | {"status": "left", "summary": why})
        return
    restore(case, run.outcome(case).get("details"))
    start = time.monotonic()
    code, expired, tail = run_limited(run, case)
    if run.is_ending:
        return
    outcome = judge(case, code, expired, tail, was_stopped="stops" in run.outcome(case))
    outcome["seconds"] = round(time.monotonic() - start, 1)
    run.record(case, **outcome)
    # A GPU that is gone fails every case that comes, and failures stand.
    if code != 0 and not run.device.is_dry and Device.find(run.environment, dry_run=False) is None:
        run.is_ending = True
        again = {} if outcome.get("stops", 0) > 1 else {"status": "stopped", "stops": 1}
        run.record(case, **outcome | again | {"summary": f"the GPU does not answer any more: {outcome['summary']}"})


def judge(case: Case, code: int, expired: bool, tail: list[str], *, was_stopped: bool) -> dict:
    """The outcome of a case that was run; stopped once, it is tried again."""
    summary = next((line for line in reversed(tail) if line.strip()), "")
    outcome = {"status": "passed", "summary": summary}
    if code != 0:
        why = f"stopped at the limit of {case.limit} s" if expired else f"exit code {code}"
        outcome = {"status": "FAILED", "summary": f"{why}: {summary}", "output": tail}
        outcome |= {"stops": 2} if was_stopped else {"status": "stopped", "stops": 1} if expired else {}
    if case.record.exists():
        with suppress(ValueError):  # cut in the middle by the limit
            outcome["details"] = json.loads(case.record.read_text())
    if case.goes_on and code == 0 and outcome.get("details", {}).get("left"):
        outcome["status"] = "left"
    return outcome


def restore(case: Case, details: dict | None) -> None:
    """The record that a case begins with: none, or what it goes on with, also where the folder was lost since."""
    case.record.parent.mkdir(parents=True, exist_ok=True)
    if not case.goes_on:
        case.record.unlink(missing_ok=True)
    elif details and not case.record.exists():
        case.record.write_text(json.dumps(details))


def restore_tuned(run: Run) -> None:
    """The tuner's table from what its cases say of it, where the folder was lost since."""
    details = [outcome.get("details", {}) for outcome in run.report["stages"].get("tune", {}).values()]
    configs = {key: config for each in details for key, config in each.get("configs", {}).items()}
    path = run.folder / TUNED / "videomaker" / "pisa-configs.json"  # below $XDG_CACHE_HOME, as the kernels have it
    if configs and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(configs))


def run_limited(run: Run, case: Case) -> tuple[int, bool, list[str]]:
    """Exit code, whether the limit was reached, and the last lines of the output."""
    process = subprocess.Popen(
        case.command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=ROOT,
        env=run.environment | case.variables,
        start_new_session=True,
        preexec_fn=die_with_parent,
    )
    run.processes.add(process)
    tail: deque[str] = deque(maxlen=40)
    reader = threading.Thread(target=read_lines, args=(process, tail), daemon=True)
    reader.start()
    expired = False
    try:
        process.wait(case.limit)
    except subprocess.TimeoutExpired:
        expired = True
    finally:
        kill(process)
        run.processes.discard(process)
    with suppress(subprocess.TimeoutExpired):  # one that hangs in the driver outlives its kill
        process.wait(LAST_WORDS)
    reader.join(LAST_WORDS)
    return -signal.SIGKILL if process.returncode is None else process.returncode, expired, list(tail)


def read_lines(process: subprocess.Popen, tail: deque[str]) -> None:
    """Keep the last lines that a process prints."""
    for line in process.stdout or ():
        if not line.startswith('{"'):  # a report, which is in its record
            tail.append(line.rstrip()[:500])


def die_with_parent() -> None:
    """On Linux the kernel kills the process when its parent is killed, so that it does not keep the GPU."""
    with suppress(AttributeError):
        LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def kill(process: subprocess.Popen) -> None:
    """End a case and all processes that it started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def conclude(run: Run, cases: list[Case]) -> int:
    """Count the outcomes by stage; the exit code."""
    print(f"\n{run.path}")
    found = {case: run.outcome(case).get("status", "left") for case in cases}
    for stage in dict.fromkeys(case.stage for case in cases):
        counts: dict[str, int] = {}
        for case, status in found.items():
            if case.stage == stage:
                counts[status] = counts.get(status, 0) + 1
        print(f"{stage:<11}{', '.join(f'{count} {status}' for status, count in counts.items())}")
    if any(status in LEFT for status in found.values()):
        return 3
    return int("FAILED" in found.values())


if __name__ == "__main__":
    sys.exit(main())
