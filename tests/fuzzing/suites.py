"""Suites of evaluations: documents with one value changed, broken texts, pictures and prompts that are not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from videomaker.evaluation.suite import read_suite

from .case import WRONG_CONTENTS, Case, Rng, no_file
from .documents import places, value_at, with_value, without, wrong_value
from .world import World

ODD: dict[tuple[str | int, ...], tuple[Any, ...]] = {
    ("subjects",): ([], {}, "a", [[]], [None]),
    ("subjects", 0, "name"): ("", ".", "..", "a/b", "../x", "\0", " ", "b", "B", "x" * 300),
    ("subjects", 0, "image"): ("missing.png", "", ".", "/dev/zero", "x" * 5000, "suite.yaml"),
    ("subjects", 0, "mask"): ("missing.png", "", ".", "suite.yaml"),
    ("subjects", 0, "box"): ([1, 2, 3], [9, 9, 3, 3], "a", [float("nan"), 0, 9, 9]),
    ("prompts",): ([], "", "missing.txt", "cats", [""], [5], {}, {"cat": "people"}, [" "], ["x" * 10_001]),
    ("seeds",): ([], "a", [-1], [1.5], [True], [2**63], {}, [[1]]),
    ("fps",): (0, -1, "a", float("nan"), float("inf"), 1e9, []),
    ("unknown",): (1,),
}


def case(rng: Rng, world: World, folder: Path) -> Case:
    """A suite, read alone or for `evaluate run`."""
    path = folder / "suite.yaml"
    subject = {"image": str(world.picture), "class": "dog", "box": [0, 0, 20, 20]}
    suite = {"subjects": [{"name": "a", **subject}, {"name": "b", **subject}], "prompts": ["a fox", "a dog"],
             "seeds": [0, 1], "fps": 8}  # fmt: skip
    way = rng.choices(("odd", "wrong", "absent", "content", "no file", "good"), (5, 4, 2, 2, 2, 1))[0]
    expect, what, place = "refused", way, ()
    if way == "no file":
        what, path = no_file(folder, rng, "suite.yaml")
    elif way == "content":
        what = rng.pick(WRONG_CONTENTS)
        path.write_bytes(WRONG_CONTENTS[what])
    else:
        if way == "odd":
            place = rng.pick(ODD)
            value = rng.pick(ODD[place])
            suite, what = with_value(suite, place, value), f"{place} is {str(value)[:40]!r}"
        elif way == "wrong":
            place = rng.pick(places(suite))
            value = wrong_value(suite, place, rng)
            suite, what = with_value(suite, place, value), f"{place} is {str(value)[:40]!r}"
            expect = "either" if value is None or not isinstance(value_at(suite, place), dict) else "refused"
        elif way == "absent":
            place = rng.pick(places(suite))
            suite, what, expect = without(suite, place), f"without {place}", "either"
        else:
            expect = "works"
        path.write_text(yaml.safe_dump(suite, allow_unicode=True))
    if rng.random() < 0.6:
        # Masks, and what is in a picture's file, are looked at when the pictures are read, before the first video.
        late = place[-1:] == ("mask",) or what.endswith("'suite.yaml'")
        lenient = "either" if expect == "refused" and late else expect
        return Case(f"suite read: {what}", lambda: read_suite(path), lenient)
    words = ["evaluate", "run", str(path), "-o", "out", "--model", str(world.model), "--steps", "1", "--frames", "2"]
    return Case(f"evaluate run, a suite: {what}", words, "refused", ())  # without --models nothing can be measured
