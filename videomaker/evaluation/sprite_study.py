"""The sprite world over several seeds: rates with intervals, which creatures fail; goes on when interrupted."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from videomaker.errors import InputError
from videomaker.files import atomic_path, check_results_folder
from videomaker.jobs.record import component_digests
from videomaker.pipeline import VideoMakerPipeline
from videomaker.sprites.measure import ClipScores
from videomaker.sprites.world import SIZES

from .creatures import RATES, Row, creature_row, failures, of_size, rate
from .sprites import SpriteSuite, case_sheet, contact_sheet, score_cases, sprite_cases, suite_gain

RESULTS, CREATURES, SHEET, FAILED = "results.json", "creatures.csv", "videos.png", "failed.png"
_SHOWN = 16  # failed creatures on a sheet


def check_place(out: Path) -> None:
    """Refuses a folder with files that a study would replace, unless a study made them: before the work.

    Raises:
        InputError: `out` is no folder, or holds such files.
    """
    check_results_folder(out, (RESULTS, CREATURES, SHEET), lambda folder: any(folder.glob(f"seed-*/{RESULTS}")))


def check_earlier(out: Path, suite: SpriteSuite, digests: dict[str, str] | None = None) -> None:
    """Refuses a folder with a study of another suite, or of another model where its `digests` are given.

    Every seed counts, also one that is not asked for: what lies in one folder is of one suite and model.

    Raises:
        InputError: there is such a study.
    """
    for place in sorted(out.glob("seed-*")):
        found = _read(place)
        old = found.get("suite") or {}
        new = asdict(suite) | {"seed": old.get("seed")}
        others = [f"{name} {old.get(name)}" for name, value in new.items() if old.get(name) != value]
        if not others and digests is not None and found["components_sha256"] != digests:
            others = ["another model"]
        if found and others:
            raise InputError(f"{place} exists and was made with {', '.join(others)}: use --overwrite or another --out")


def study_sprites(
    pipe: VideoMakerPipeline,
    suite: SpriteSuite,
    seeds: Sequence[int],
    out: Path,
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, Any]:
    """Measures a model on the creatures of several seeds and writes what was found to a folder.

    The folder gets `results.json` (what is returned), `creatures.csv` (a line a creature), `videos.png` (the first
    seed's first videos), and `seed-N/` with each seed's scores, its first videos and its first failures. A seed that is
    there, of the same suite and model, is not made again.

    Args:
        pipe: a model of the sprite world, such as the embedded default.
        suite: what to generate; its seed does not count.
        seeds: of the creatures.
        out: the folder.
        overwrite: whether seeds that are there are made again, also those of another suite or model.
        progress: hears how many videos are there, and of how many.

    Returns:
        The means over all creatures under the names of `evaluate_sprites`, and `seeds` (each seed's rates),
        `intervals` (of the rates, Wilson's, over the creatures of all seeds) and `failures` (see `creatures.failures`).

    Raises:
        InputError: see `evaluate_sprites`, `check_place` and `check_earlier`.
    """
    check_place(out)
    digests, total = component_digests(pipe), suite.clips * len(seeds)
    if not overwrite:
        check_earlier(out, suite, digests)
    found = []
    for number, seed in enumerate(seeds):
        progress(number * suite.clips, total)
        one, place = replace(suite, seed=seed), out / f"seed-{seed}"
        further = partial(_further, progress, number * suite.clips, total)
        known = {} if overwrite else _read(place)
        found.append(known or _measure(pipe, one, place, digests, further))
    progress(total, total)
    results = _summary([part["creatures"] for part in found], [part["reference_gain"] for part in found], suite, seeds)
    shutil.copyfile(out / f"seed-{seeds[0]}" / SHEET, out / SHEET)
    _write(out / CREATURES, _comma_separated([row for part in found for row in part["creatures"]]))
    _write(out / RESULTS, json.dumps(results, indent=2) + "\n")
    return results


def _further(progress: Callable[[int, int], None], before: int, total: int, count: int) -> None:
    progress(before + count, total)


def _read(place: Path) -> dict[str, Any]:
    """What an earlier call found for a seed; empty where it did not come to its end."""
    try:
        found = json.loads((place / RESULTS).read_text(encoding="utf-8"))
        return found if {"suite", "components_sha256", "reference_gain", "creatures"} <= found.keys() else {}
    except (OSError, ValueError, AttributeError):
        return {}


def _measure(
    pipe: VideoMakerPipeline,
    suite: SpriteSuite,
    place: Path,
    digests: dict[str, str],
    on_videos: Callable[[int], None],
) -> dict[str, Any]:
    cases = sprite_cases(suite)
    scores, videos = score_cases(pipe, suite, cases, on_videos=on_videos)
    rows = [creature_row(suite.seed, index, *both) for index, both in enumerate(zip(cases, scores, strict=True))]
    found = {
        "suite": asdict(suite),
        "components_sha256": digests,
        "reference_gain": {str(step): gain for step, gain in suite_gain(pipe, suite, cases).items()},
        "creatures": rows,
    }
    place.mkdir(parents=True, exist_ok=True)
    failed = [index for index, score in enumerate(scores) if not score.identity][:_SHOWN]
    with atomic_path(place / SHEET) as path:
        contact_sheet(suite, videos).save(path)
    (place / FAILED).unlink(missing_ok=True)  # of what is made again
    if failed:
        with atomic_path(place / FAILED) as path:
            case_sheet([cases[i] for i in failed], [videos[i] for i in failed]).save(path)
    _write(place / RESULTS, json.dumps(found, indent=1) + "\n")
    return found


def _summary(
    parts: Sequence[Sequence[Row]],
    gains: Sequence[dict[str, float]],
    suite: SpriteSuite,
    seeds: Sequence[int],
) -> dict[str, Any]:
    rows = [row for part in parts for row in part]
    return {
        **{field.name: _mean(rows, field.name) for field in fields(ClipScores)},
        "identity_by_size": {size: value["mean"] for size, value in _by_size(rows).items()},
        "reference_gain": {step: float(np.mean([gain[step] for gain in gains])) for step in gains[0]},
        "suite": asdict(replace(suite, seed=seeds[0])),
        "seeds": {
            str(seed): {
                **{name: _mean(part, name) for name in RATES},
                "identity_by_size": {size: value["mean"] for size, value in _by_size(part).items()},
            }
            for seed, part in zip(seeds, parts, strict=True)
        },
        "intervals": {
            **{name: rate(rows, name) for name in RATES},
            **{f"identity_{size}": value for size, value in _by_size(rows).items()},
        },
        "failures": failures(rows),
    }


def _mean(rows: Sequence[Row], name: str) -> float:
    return float(np.mean([row["scores"][name] for row in rows]))


def _by_size(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    sizes = {size: rate(of_size(rows, size), "identity") for size in SIZES}
    return {size: value for size, value in sizes.items() if value}


def _comma_separated(rows: Sequence[Row]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["seed", "index", *rows[0]["traits"], *(f"score_{name}" for name in rows[0]["scores"])])
    for row in rows:
        writer.writerow([row["seed"], row["index"], *row["traits"].values(), *row["scores"].values()])
    return file.getvalue()


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
