"""DeepSpeed's compiled operators: made at the first start on a machine, loaded by one process after the other."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from videomaker.errors import InputError

LOST_SECONDS = 5  # the age from which torch's mark, which no process here has open, is a killed one's
BUILD_SECONDS = 900  # the same where a disk has no locks, so that another machine may be compiling


def load_operator(builder: str, say: Callable[[str], object] = print) -> None:
    """Loads an operator of DeepSpeed's, and compiles it first where this machine has not done so yet.

    torch marks a folder in which it compiles, or looks whether it has to, by a file. A process that is killed meanwhile
    leaves it behind, and every later start would wait for it for ever, without a word. Here processes take turns by a
    lock of the system's, which ends with its holder; a mark that is left is removed.

    Args:
        builder: by DeepSpeed's name, such as `CPUAdamBuilder`; where the accelerator has none, nothing is done.
        say: hears what takes long.

    Raises:
        InputError: it has to be compiled and there is no compiler.
    """
    import deepspeed
    from deepspeed.accelerator import get_accelerator
    from torch.utils.cpp_extension import _get_build_directory

    made = get_accelerator().create_op_builder(builder)
    if made is None or not deepspeed.ops.__compatible_ops__.get(made.NAME, False):
        return
    folder = Path(_get_build_directory(made.name, False))
    is_new = not (folder / f"{made.name}.so").is_file()
    if is_new and os.environ.get("RANK", "0") == "0":
        _require_compiler()
        say(f"DeepSpeed compiles its operator {made.name}: once on this machine, about a minute")
    with _turn(folder / "turn") as has_locks:
        remove_lost_mark(folder / "lock", LOST_SECONDS if has_locks else BUILD_SECONDS, say)
        made.load(verbose=False)


def remove_lost_mark(mark: Path, seconds: float, say: Callable[[str], object] = print) -> None:
    """Returns once torch's mark is gone: waits for the process that has it open, removes one that nobody has.

    Args:
        mark: the file.
        seconds: the age from which a mark that no process of this machine has open is lost.
        say: hears of either.
    """
    told = False
    while mark.exists():
        with suppress(FileNotFoundError):
            if time.time() - mark.stat().st_mtime > seconds and not _is_open(mark):
                mark.unlink()
                say(f"{mark} was left by a process that was killed while it loaded an operator: removed")
                return
        if not told:
            say(f"another program compiles the operator and is waited for: {mark}")
            told = True
        time.sleep(0.5)


@contextmanager
def _turn(path: Path) -> Iterator[bool]:
    """Within it no other process of ours is; yields whether the disk has locks to see to that."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            yield False
        else:
            yield True


def _is_open(path: Path) -> bool:
    """Whether a process that we may look at has the file open, as torch's has as long as it lives."""
    name = str(path.resolve())
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if any(file.path == name for file in process.open_files()):
                return True
    return False


def _require_compiler() -> None:
    from torch.utils.cpp_extension import get_cxx_compiler

    compiler = get_cxx_compiler()
    if shutil.which(compiler) is None:
        raise InputError(
            f"DeepSpeed compiles an operator at its first start and there is no C++ compiler {compiler!r}: "
            "install one (apt install g++), or name it in CXX"
        )
