"""Runs cases in processes of their own, forked from one that has imported the libraries: milliseconds, not seconds.

A child has a limit of processor time, of memory and of the clock. What it printed, how it ended, whether a model had
begun to work and which files it left behind are told to the parent, which judges.
"""

from __future__ import annotations

import fnmatch
import hashlib
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import KINDS
from .case import Case

CPU_SECONDS, WALL_SECONDS, MEMORY = 40, 240, 3 * 2**30
LONGEST_MESSAGE, LONGEST_OUTPUT = 500, 6_000
STARTED = ".work-began"  # beside the case's folder


@dataclass
class Outcome:
    """What became of a case; `wrong` says why it counts as a failure."""

    name: str
    what: str = ""
    command: str = ""
    expect: str = "either"
    code: int | None = None
    seconds: float = 0.0
    cpu: float = 0.0
    error: str = ""
    left: tuple[str, ...] = ()
    wrong: str = ""


def import_libraries() -> None:
    """What every child needs, once."""
    import torch

    torch.set_num_threads(1)
    for kind in KINDS:
        importlib.import_module(f"{__package__}.{kind}")
    from videomaker.cli import app  # noqa: F401
    from videomaker.jobs import prepare, render  # noqa: F401
    from videomaker.jobs.quiet import quiet_libraries

    quiet_libraries()


def run_case(name: str, make: Callable[[Path], Case]) -> Outcome:
    """Makes a case and runs it, both in a forked child, in a folder that is removed afterwards."""
    place = Path(tempfile.mkdtemp(prefix="case-"))
    start = time.monotonic()
    try:
        child = os.fork()
        if child == 0:
            _in_child(place, make)
        status, cpu = _wait(child, start + WALL_SECONDS)
        outcome = _judge(name, place, status)
        outcome.cpu = round(cpu, 2)
    finally:
        _remove(place)
    outcome.seconds = round(time.monotonic() - start, 2)
    return outcome


def _wait(child: int, until: float) -> tuple[int | None, float]:
    """The child's status, or None when its time was up; and its seconds of processor time."""
    while time.monotonic() < until:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            return status, usage.ru_utime + usage.ru_stime
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    _, _, usage = os.wait4(child, 0)
    return None, usage.ru_utime + usage.ru_stime


def _remove(place: Path) -> None:
    for folder in [path for path in place.rglob("*") if path.is_dir() and not path.is_symlink()]:
        folder.chmod(0o700)
    shutil.rmtree(place, ignore_errors=True)


def _in_child(place: Path, make: Callable[[Path], Case]) -> None:
    code = 70
    try:
        os.setsid()
        folder = place / "folder"
        folder.mkdir()
        os.chdir(folder)
        case = make(folder)
        about = {"what": case.what, "expect": case.expect, "results": case.results, "before": snapshot(folder)}
        about["command"] = _shown(case.run)
        (place / "about.json").write_text(json.dumps(about))
        _set_limits()
        _redirect(place)
        _mark_work(place / STARTED)
        code = _code_of(case.run)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _shown(run: Any) -> str:
    return " ".join(map(repr, run)) if isinstance(run, list) else getattr(run, "__qualname__", "a call")


def _set_limits() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
    used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _redirect(place: Path) -> None:
    """Output to files; input from a pipe that nobody ever writes to, as a terminal at night."""
    reader, writer = os.pipe()
    os.set_inheritable(writer, False)
    os.dup2(reader, 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(place / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdin = os.fdopen(0)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace")


def _mark_work(mark: Path) -> None:
    """Leaves a mark when a model begins to denoise: what is refused after that was found late."""
    from videomaker.pipeline.pipeline import VideoMakerPipeline

    denoise = VideoMakerPipeline.denoise

    def marked(*args: Any, **kwargs: Any) -> Any:
        mark.touch()
        return denoise(*args, **kwargs)

    VideoMakerPipeline.denoise = marked


def _code_of(run: list[str] | Callable[[], Any]) -> int:
    if isinstance(run, list):
        return _command(run)
    from videomaker.errors import InputError

    try:
        run()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _command(words: list[str]) -> int:
    import traceback

    try:
        if words[:1] == ["train"]:
            from videomaker.train.main import main as train

            return train(words[1:])
        from videomaker.cli import app

        sys.argv = ["videomaker", *words]
        app(words, prog_name="videomaker")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def snapshot(folder: Path) -> dict[str, str]:
    """A digest of every file below a folder, and the kind of whatever is none; of big ones the size."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"link to {os.readlink(path)}"
        elif path.is_file():
            size = path.stat().st_size
            found[name] = str(size) if size > 2**24 else hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "a folder" if path.is_dir() else "something else"
    return found


def _judge(name: str, place: Path, status: int | None) -> Outcome:
    if not (place / "about.json").exists():
        return Outcome(name, wrong="the generator itself failed")
    about = json.loads((place / "about.json").read_text())
    outcome = Outcome(name, about["what"], about["command"], about["expect"])
    stderr = (place / "stderr").read_text(errors="replace") if (place / "stderr").exists() else ""
    if not stderr and (place / "stdout").exists():
        stderr = (place / "stdout").read_text(errors="replace")  # the help, where words are lacking
    outcome.error = stderr[-1500:]
    outcome.code = None if status is None else os.waitstatus_to_exitcode(status)
    before, after = about["before"], snapshot(place / "folder")
    changed = [path for path, digest in before.items() if after.get(path) != digest]
    new = [path for path in after if path not in before]
    outcome.left = tuple([*changed, *new][:8])
    results = () if outcome.code else about["results"]
    results = (*results, "*.checked")  # the journal of `data check`, kept on purpose
    stray = [path for path in new if not any(fnmatch.fnmatch(path, pattern) for pattern in results)]
    temporary = [path for path in new if ".tmp" in path]
    late = (place / STARTED).exists()
    changed = [path for path in changed if not any(fnmatch.fnmatch(path, pattern) for pattern in results)]
    outcome.wrong = _wrong(outcome, stderr, late, changed, temporary or stray)
    return outcome


def _wrong(outcome: Outcome, stderr: str, late: bool, changed: list[str], stray: list[str]) -> str:
    """The first reason why a case has failed; "" for none."""
    code = outcome.code
    if code is None or code == -signal.SIGXCPU:
        return "hang"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    if "Traceback (most recent call last)" in stderr or code not in (0, 2):
        return "traceback"
    if changed:
        return f"changed what was there: {changed[0]}"
    if stray:
        return f"left behind: {stray[0]}"
    if code == 0:
        return "accepted in silence" if outcome.expect == "refused" else ""
    if outcome.expect == "works":
        return "refused what is good"
    if late:
        return "found late"
    return _unclear(stderr)


def _unclear(stderr: str) -> str:
    lines = stderr.strip().splitlines()
    if not lines:
        return "refused without a word"
    errors = [line for line in lines if line.startswith(("error: ", "Error: "))]
    if not errors and any(line.strip().lower().startswith("usage:") for line in lines):
        return ""  # a command's help, or what its parser says
    if not errors:
        return "refused without an error's line"
    if errors and len(errors[-1]) > LONGEST_MESSAGE:
        return "an error longer than a line"
    return "prints too much" if len(stderr) > LONGEST_OUTPUT else ""


def as_json(outcome: Outcome) -> str:
    """A line for the results."""
    return json.dumps(asdict(outcome))
