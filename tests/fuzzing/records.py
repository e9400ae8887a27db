"""Records of videos, edited by hand or come from elsewhere, for `generate --from-json`."""

from __future__ import annotations

import json
from pathlib import Path

from .case import WRONG_CONTENTS, Case, Rng, no_file
from .documents import damaged_text, dump, places, value_at, with_value, without, wrong_value
from .world import World

# What of a record decides nothing, or may be left out.
OPEN = {"versions", "machine", "model_fingerprint", "made", "seconds"}
OPTIONAL = {("model", "vae"), ("model", "loras"), ("model_fingerprint",)}
STILL_RIGHT = {("settings", "fps"), ("settings", "guidance")}  # a whole number is a number too
ODD = {
    ("machine", "threads"): (100_000, 0, -1, 10**30, 513, 2.5, "1"),
    ("settings", "width"): (36.5, 0, 33, 10**6, 4097),
    ("settings", "steps"): (0, 10**9),
    ("settings", "frames"): (0, 10**9),
    ("settings", "fps"): (0, 1e9, 1e-9),
    ("seed",): (-1, 2**63, 2**200),
    ("video",): ("", ".", "..", "a/b.mp4", "../x.mp4", "\0", "x" * 300),
    ("output", "upscale"): (0, 65, 10**9),
    ("model", "device"): ("cuda:99", "tpu", "../x", "cpu; rm"),
    ("model", "dtype"): ("float64", "int8", "auto"),
    ("model", "attention_backend"): ("flash", "../x"),
    ("record_version",): (0, 99, -1, 10**30),
    ("prompt",): ("", "x" * 10_001),
    ("components_sha256", "unet"): ("0" * 64, "x", "0" * 63),
    ("references", 0, "sha256"): ("0" * 64, "x"),
    ("references", 0, "path"): ("missing.png", "", "\0", "/dev/zero", "x" * 5000),
}


def case(rng: Rng, world: World, folder: Path) -> Case:
    """A changed record, and the command that makes its video again."""
    record = json.loads(world.record.read_text())
    path, output = folder / "x.json", folder / "out.mp4"
    words = ["generate", "--from-json", str(path), "-o", str(output)]
    way = rng.choices(("wrong kind", "odd", "absent", "text", "content", "no file", "nothing"), (5, 4, 3, 2, 1, 1, 1))[
        0
    ]
    if way in ("text", "content", "no file"):
        what, path = _unreadable(way, record, rng, folder)
        words[2] = str(path)
        return Case(f"record: {what}", words, "refused")
    expect, what = "works", "as it was"
    if way == "wrong kind":
        place = rng.pick([place for place in places(record) if place[0] not in OPEN])
        value = wrong_value(record, place, rng)
        unchanged = value == value_at(record, place) or (place in STILL_RIGHT and value in (5, 1.5))
        optional = value is None and place in {("batch",)}
        record, expect = with_value(record, place, value), "either" if unchanged or optional else "refused"
        what = f"{place} is {str(value)[:40]!r}"
    elif way == "odd":
        place = rng.pick(ODD)
        value = rng.pick(ODD[place])
        record, expect, what = with_value(record, place, value), "refused", f"{place} is {str(value)[:40]!r}"
    elif way == "absent":
        place = rng.pick(places(record))
        free = place in OPTIONAL or place[0] in OPEN or isinstance(place[-1], int) or place[0] == "components_sha256"
        record, expect, what = without(record, place), "either" if free else "refused", f"without {place}"
    path.write_text(dump(record))
    return Case(f"record: {what}", words, expect)


def _unreadable(way: str, record: dict, rng: Rng, folder: Path) -> tuple[str, Path]:
    path = folder / "x.json"
    if way == "no file":
        return no_file(folder, rng, "x.json")
    if way == "text":
        what, content = damaged_text(dump(record), rng)
    else:
        what = rng.pick(WRONG_CONTENTS)
        content = WRONG_CONTENTS[what]
    path.write_bytes(content)
    return what, path
