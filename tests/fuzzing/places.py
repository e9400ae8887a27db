"""Where other commands than `generate` write: something of the user's lies there, or nothing can."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from .case import Case, Rng
from .world import World

OTHER_CLIPS = json.dumps({"video": "mine.mp4", "caption": "mine"}) + "\n"
FOREIGN = ("", "mine\n", '{"mine": 1}', "[]", OTHER_CLIPS, "\0\0")


def case(rng: Rng, world: World, folder: Path) -> Case:
    """A command that writes, and a place that it must leave as it is."""
    (folder / "mine.mp4").write_bytes(world.video.read_bytes())
    name = rng.pick(COMMANDS)
    words, files = COMMANDS[name](world, folder)
    what = rng.pick(WAYS)
    place = folder / "taken"
    expect = WAYS[what](rng, place, files)
    return Case(f"{name} where {what}", [*words, _shown(rng, place, folder)], expect, ("*.checked",))


def _shown(rng: Rng, place: Path, folder: Path) -> str:
    return rng.pick((str(place), os.path.relpath(place, folder), f"./{place.name}"))


# Of each command: its words, the place last, and the files that it writes there; none where the place is one file.
COMMANDS: dict[str, Callable[[World, Path], tuple[list[str], tuple[str, ...]]]] = {
    "convert": lambda world, _: (["convert", "--model", str(world.model), str(world.weights)], ()),
    "data sprites": lambda *_: (["data", "sprites", "--clips", "1", "--out"], ("manifest.jsonl",)),
    "data shard": lambda world, _: (
        ["data", "shard", str(world.clips / "manifest.jsonl"), "--out"],
        ("manifest.jsonl", "plan.json", "shard-000000.tar"),
    ),
    "data cache": lambda world, _: (
        ["data", "cache", str(world.clips / "manifest.jsonl"), "--model", str(world.model), "--num-frames", "2",
         "--height", "16", "--width", "16", "--frame-stride", "1", "--out"], ("cache.json",),
    ),
    "data index": lambda world, _: (["data", "index", "--layout", "folder", "--root", str(world.clips), "--out"], ()),
    "warmup": lambda world, _: (["warmup", "--model", str(world.model), "--save"], ("key.json", "photo.jpg")),
    "evaluate sprites": lambda world, _: (
        ["evaluate", "sprites", "--clips", "2", "--steps", "1", "--out"], ("results.json", "creatures.csv"),
    ),
}  # fmt: skip


def _file_of_others(rng: Rng, place: Path, files: tuple[str, ...]) -> str:
    content = rng.pick(FOREIGN)
    if files:
        place.mkdir()
        (place / rng.pick(files)).write_text(content or "mine")
    else:
        place.write_text(content or "mine")
    return "refused"


def _another_kind(rng: Rng, place: Path, files: tuple[str, ...]) -> str:
    """A file where a folder is wanted, or the other way round."""
    if files:
        place.write_text("mine")
    else:
        place.mkdir()
    return "refused"


def _loop(rng: Rng, place: Path, files: tuple[str, ...]) -> str:
    place.symlink_to(place)
    return "refused"


def _pipe(rng: Rng, place: Path, files: tuple[str, ...]) -> str:
    os.mkfifo(place)
    return "refused"


def _below_a_file(rng: Rng, place: Path, files: tuple[str, ...]) -> str:
    """The place itself is a link into a file, so that nothing can be made there."""
    (place.parent / "file").write_text("mine")
    place.symlink_to(place.parent / "file" / "x")
    return "refused"


def _folders_for_files(rng: Rng, place: Path, files: tuple[str, ...]) -> str:
    """A folder bears the name of a file that the command writes."""
    if files:
        (place / files[0]).mkdir(parents=True)
    else:
        place.mkdir()
    return "refused"


WAYS: dict[str, Callable[[Rng, Path, tuple[str, ...]], str]] = {
    "a file of others lies": _file_of_others,
    "another kind of thing lies": _another_kind,
    "a link leads to itself": _loop,
    "a pipe lies": _pipe,
    "a file is a folder": _below_a_file,
    "a folder is a file": _folders_for_files,
}
