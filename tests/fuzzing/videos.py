"""Videos: damaged, of other kinds, oddly named, and what is none, for `data check` and for reading."""

from __future__ import annotations

import json
import os
from pathlib import Path

from videomaker.data.errors import ClipError
from videomaker.data.video import open_video
from videomaker.errors import InputError

from .case import FILE_NAMES, WRONG_CONTENTS, Case, Rng, flipped, no_file, truncated
from .world import World


def case(rng: Rng, world: World, folder: Path) -> Case:
    """A video, read alone or listed in a manifest."""
    good = (world.clips / "0.mp4").read_bytes()
    path = folder / f"x.{rng.pick(('mp4', 'mov', 'mkv', 'webm', 'avi'))}"
    way = rng.choices(("good", "named", "cut", "changed", "content", "no file", "header"), (1, 4, 3, 3, 3, 2, 2))[0]
    expect = "refused"
    if way == "good":
        what, expect = "good", "works"
        path.write_bytes(good)
    elif way == "named":
        name = rng.pick(FILE_NAMES) + ".mp4"
        path = Path(os.fsencode(str(folder / name)).decode(errors="surrogateescape"))
        path.write_bytes(good)
        what, expect = f"named {name!r}", "either" if "\udcff" in name else "works"
    elif way == "cut":
        path.write_bytes(truncated(good, rng))
        what = "cut short"
    elif way == "changed":
        path.write_bytes(flipped(good, rng, 60))
        what, expect = "with changed bytes", "either"
    elif way == "content":
        what = rng.pick(WRONG_CONTENTS)
        path.write_bytes(WRONG_CONTENTS[what])
    elif way == "header":
        end = good.index(b"mdat")
        path.write_bytes(flipped(good[:end], rng, 6) + good[end:])
        what, expect = "with a changed header", "either"
    else:
        what, path = no_file(folder, rng, path.name)
    if rng.random() < 0.6:
        return Case(f"video read: {what}", lambda: _read(path), expect)
    manifest = folder / "manifest.jsonl"
    manifest.write_text(json.dumps({"video": str(path), "caption": "x"}) + "\n")
    return Case(f"data check, a video {what}", ["data", "check", str(manifest)], expect, ("*.checked",))


def _read(path: Path) -> None:
    try:
        with open_video(path) as video:
            frames = video.read(range(min(4, video.num_frames or 1)))
    except ClipError as error:
        raise InputError(str(error)) from error
    assert 1 <= len(frames) <= 4
