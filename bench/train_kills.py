"""Kills trainings at random moments, and counts what was lost: nothing, if the last line says so.

    python bench/train_kills.py process --kills 50              # kill -9 of a training on one process
    python bench/train_kills.py ranks --kills 50                # … of one of two ranks
    python bench/train_kills.py launcher --kills 20             # … of the outer `deepspeed`, whose ranks must notice
    python bench/train_kills.py twins --kills 20                # two trainings into one folder, one of them killed

The run goes on after every kill, and at the end its curve and its weights must have the bits of a run that nobody
killed, and no process may be left. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
ENVIRONMENT = {
    **os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1",
}  # fmt: skip
STEPS, EVERY = 40, 4
PATIENCE = 120.0  # seconds in which the ranks of a killed launcher must save and end


class Bench:
    """A tiny run that is started, killed and started again."""

    def __init__(self, folder: Path, ranks: int):
        from runs import write_configuration

        self.config = write_configuration(folder)
        self.folder, self.ranks = folder, ranks
        self.started = 0

    def start(self, output: str, *overrides: str) -> subprocess.Popen:
        """A training, alone or under `deepspeed`."""
        from videomaker.train.ranks import free_port

        launcher = [sys.executable]
        if self.ranks > 1:
            deepspeed = str(Path(sys.executable).with_name("deepspeed"))
            launcher = [deepspeed, "--num_accelerators", str(self.ranks), "--master_port", str(free_port())]
        settings = [f"steps={STEPS}", f"batch_size={self.ranks}", f"checkpoint.every={EVERY}", "log.every=1"]
        command = [*launcher, "train/main.py", "--config", str(self.config), *settings, *overrides]
        self.started += 1
        log = (self.folder / f"{output}-{self.started}.log").open("w")
        return subprocess.Popen(
            [*command, f"output={self.folder / output}"], cwd=ROOT, env=ENVIRONMENT, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip

    def finish(self, output: str) -> str:
        """Trains to the end; returns the digest of curve and weights."""
        process = self.start(output)
        if process.wait(timeout=1200):
            raise RuntimeError(f"the run does not end well; see {self.folder / output}-{self.started}.log")
        return self.digest(output)

    def digest(self, output: str) -> str:
        """Of the losses and the last weights."""
        run = self.folder / output
        lines = (run / "metrics.csv").read_text().splitlines()
        loss = lines[0].split(",").index("loss")
        curve = [(line.split(",")[0], line.split(",")[loss]) for line in lines[1:]]
        weights = (run / "checkpoints" / f"step-{STEPS:08d}" / "trained.safetensors").read_bytes()
        return hashlib.sha256(json.dumps(curve).encode() + weights).hexdigest()


def family(process: subprocess.Popen) -> list[psutil.Process]:
    """A process and all that descend from it."""
    try:
        top = psutil.Process(process.pid)
        return [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def wait_until_gone(processes: list[psutil.Process]) -> tuple[int, float]:
    """How many are left after `PATIENCE`, and after how many seconds the last of the others went."""
    begin = time.monotonic()
    _, left = psutil.wait_procs(processes, timeout=PATIENCE)
    for process in left:
        process.kill()
    return len(left), time.monotonic() - begin


def kill_one(bench: Bench, victim: str, moment: float) -> tuple[int, float]:
    """Starts the run, kills the victim at the moment, waits for the others."""
    process = bench.start("run")
    deadline = time.monotonic() + moment
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    members = family(process)
    ranks = [member for member in members if "train/main.py" in " ".join(_command(member)[1:4])]
    chosen = random.choice(ranks) if victim == "ranks" and ranks else members[0] if members else None
    if chosen is not None:
        chosen.kill()
    process.wait(timeout=PATIENCE)
    return wait_until_gone(members[1:])


def kill_a_twin(bench: Bench, moment: float) -> tuple[int, float, int]:
    """Starts a second run into the same folder, which must be refused, and then kills the first."""
    first = bench.start("run")
    time.sleep(moment / 2)
    second = bench.start("run")
    codes = []
    deadline = time.monotonic() + max(moment, 60)
    while time.monotonic() < deadline and first.poll() is None and second.poll() is None:
        time.sleep(0.05)
    for process in (first, second):
        codes.append(process.poll())
        if process.poll() is None:
            process.kill()
            process.wait()
    both_wrote = codes[0] == 0 and codes[1] == 0 and first.returncode == second.returncode == 0
    refused = sum(code == 2 for code in codes)
    return int(both_wrote), 0.0, refused


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _circumstances(commit: str) -> dict:
    """Of the machine, the libraries and the code."""
    import torch
    from videomaker.train.run_folder import source_commit

    from videomaker.environment import machine, versions

    return {
        "machine": machine(torch.device("cpu")), "load": os.getloadavg(), "versions": versions(),
        "commit": commit or source_commit(),
    }  # fmt: skip


def main() -> None:
    """Runs one kind of kill so often, and compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["process", "ranks", "launcher", "twins"])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commit", default="", help="of the code, where this is not a git checkout")
    options = parser.parse_args()
    random.seed(options.seed)
    left, slowest, refused, finished = 0, 0.0, 0, 0
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(Path(temporary), ranks=2 if options.kind in ("ranks", "launcher") else 1)
        begin = time.monotonic()
        expected = bench.finish("whole")
        whole = time.monotonic() - begin
        for number in range(options.kills):
            if (bench.folder / "run" / "checkpoints" / f"step-{STEPS:08d}").exists():
                assert bench.digest("run") == expected, "the run that ended has other bits"
                (bench.folder / "run").rename(bench.folder / f"run-{number}")
                finished += 1
            moment = round(random.uniform(0, whole), 2)
            if options.kind == "twins":
                more, seconds, no = kill_a_twin(bench, moment)
                refused += no
            else:
                more, seconds = kill_one(bench, options.kind, moment)
            left, slowest = left + more, max(slowest, seconds)
            print(f"{number + 1} of {options.kills}: at {moment} s; gone after {seconds:.1f} s", flush=True)
        same = bench.finish("run") == expected
    result = {
        "kind": options.kind, "kills": options.kills, "seed": options.seed, "whole_seconds": round(whole, 1),
        "same_bits": same, "processes_left": left, "slowest_end_seconds": round(slowest, 1), "refused": refused,
        "runs_finished": finished, **_circumstances(options.commit),
    }  # fmt: skip
    print(json.dumps(result))
    sys.exit(not (same and not left))


if __name__ == "__main__":
    main()
