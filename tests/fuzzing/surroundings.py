"""A good command in odd surroundings: no home, no folder to stand in, a disk that is full, nobody who reads."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

from .case import Case, Rng
from .world import World


def _gone(folder: Path) -> None:
    (folder / "gone").mkdir()
    os.chdir(folder / "gone")
    (folder / "gone").rmdir()


def _full(folder: Path) -> None:
    """No file may grow beyond a few bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))


def _set(**values: str) -> Callable[[Path], None]:
    return lambda folder: os.environ.update(values)


def _no_readers(folder: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)


AROUND: dict[str, Callable[[Path], None]] = {
    "no folder to stand in": _gone,
    "no home": _set(HOME="/nonexistent"),
    "no folder for what is temporary": _set(TMPDIR="/nonexistent"),
    "a narrow terminal": _set(COLUMNS="1"),
    "no locale": _set(LANG="C", LC_ALL="C", PYTHONIOENCODING="ascii"),
    "a terminal of no kind": _set(TERM="dumb"),
    "umask 0777": lambda folder: os.umask(0o777) and None,
    "standard input closed": lambda folder: os.close(0),
    "nobody reads": _no_readers,
}
FULL = {"a full disk": _full}


def case(rng: Rng, world: World, folder: Path) -> Case:
    """One command in one of them."""
    out = folder / "out"
    manifest = str(world.clips / "manifest.jsonl")
    good = {
        "convert": ["convert", str(world.weights), f"{out}.safetensors", "--model", str(world.model)],
        "shard": ["data", "shard", manifest, "--out", str(out)],
        "sprites": ["data", "sprites", "--clips", "1", "--out", str(out)],
        "generate": world.generate("-o", f"{out}.mp4"),
        "frames": world.generate("-o", str(out), "--format", "frames"),
        "info": ["info"],
        "help": ["--help"],
    }
    around = rng.pick({**AROUND, **FULL})
    name = "convert" if around in FULL else rng.pick(good)  # what goes on after an interruption keeps what it has
    change = {**AROUND, **FULL}[around]
    silent = around == "nobody reads"
    return Case(f"{name} with {around}", lambda: _run(good[name], change, folder, silent=silent), "either")


def _run(words: list[str], change: Callable[[Path], None], folder: Path, *, silent: bool) -> None:
    """The command in a changed process; refusals are the command's own line, and nothing is unexpected.

    Where nobody reads, a program ends with code 1 and without a word.
    """
    from videomaker.cli import app

    change(folder)
    sys.argv = ["videomaker", *words]
    try:
        app(words, prog_name="videomaker")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        os._exit(0 if silent and code == 1 else code)
