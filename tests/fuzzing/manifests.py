"""Manifests: lines that are wrong, files that are not there, for `data check` and for reading."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from videomaker.data.manifest import read_manifest

from .case import WRONG_CONTENTS, Case, Rng, no_file
from .documents import damaged_text, dump, places, with_value, without, wrong_value
from .world import World

FULL = {
    "id": "a", "video": "0.mp4", "captions": ["a pattern", "it moves"], "category": "x", "subject_phrase": "dog",
    "num_frames": 8, "fps": 25.0, "width": 32, "height": 32, "refs": [{"frame": 1, "box": [1, 2, 20, 30]}],
    "split": "train",
}  # fmt: skip
ODD = {
    "video": ("missing.mp4", "", ".", "../clips", "/dev/zero", "a\0b", "x" * 5000, "manifest.jsonl", "http://x/y.mp4"),
    "captions": ([], [""], [5], ["x", None]),
    "num_frames": (-1, 2.5),
    "fps": (0, -1),
    "width": (0, -5),
    "refs": ([{}], [{"frame": -1}], [{"frame": 999}], [{"image": "missing.png"}], [{"frame": 0, "box": [5, 5, 1, 1]}],
             [{"frame": 0, "mask": "missing.png"}], [{"frame": 0, "x": 1}]),
    "shard": ("missing.tar", "", "/dev/zero"),
    "unknown": (1, None),
}  # fmt: skip
DEMANDED = {("id",), ("video",), ("captions",)}


def case(rng: Rng, world: World, folder: Path) -> Case:
    """A manifest beside good clips."""
    for number in range(2):
        shutil.copy(world.clips / f"{number}.mp4", folder)
    path = folder / "manifest.jsonl"
    good = dump({"video": "1.mp4", "caption": "another"})
    way = rng.choices(
        ("wrong", "odd", "absent", "text", "content", "no file", "twice", "good"), (5, 5, 2, 3, 2, 1, 1, 1)
    )
    what, line, expect = _line(way[0], rng)
    if way[0] == "no file":
        what, path = no_file(folder, rng, "manifest.jsonl")
        expect = "refused"
    elif isinstance(line, bytes):
        path.write_bytes(line)
    else:
        path.write_text(f"{line}\n{good}\n")
    if rng.random() < 0.5:
        lenient = "either" if way[0] == "odd" else expect  # reading looks at no file
        return Case(f"manifest read: {what}", lambda: read_manifest(path), lenient)
    journal = ("*.checked",)
    return Case(f"data check: {what}", ["data", "check", str(path)], expect, journal)


def _line(way: str, rng: Rng) -> tuple[str, str | bytes, str]:
    if way == "wrong":
        place = rng.pick(places(FULL))
        value = wrong_value(FULL, place, rng)
        lenient = value is None or len(place) > 1 or (isinstance(value, int) and place[0] == "fps")
        return (
            f"{place} is {str(value)[:40]!r}",
            dump(with_value(FULL, place, value)),
            "either" if lenient else "refused",
        )
    if way == "odd":
        name = rng.pick(ODD)
        value = rng.pick(ODD[name])
        return f"{name} is {str(value)[:40]!r}", json.dumps({**FULL, name: value}), "refused"
    if way == "absent":
        place = rng.pick(places(FULL))
        needed = place in DEMANDED - {("id",)}
        return f"without {place}", dump(without(FULL, place)), "refused" if needed else "either"
    if way == "text":
        what, content = damaged_text(dump(FULL), rng)
        return what, content, "either" if what in ("twice", "empty") else "refused"
    if way == "content":
        what = rng.pick(WRONG_CONTENTS)
        return what, WRONG_CONTENTS[what], "refused"
    if way == "twice":
        return "the same id twice", dump(FULL) + "\n" + dump(FULL), "refused"
    return "good", dump(FULL), "works"
