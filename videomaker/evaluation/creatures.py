"""Which creatures a model fails on: what each one is like, and the rates of those that are alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np

from videomaker.sprites.measure import ClipScores, distractors
from videomaker.sprites.world import SIZES, Creature, draw_background

from .intervals import wilson
from .sprites import Case

RATES = ("identity", "pattern", "motion", "background", "copied_background", "size", "dynamic")
EVERY = "all"
_COPIED = ("identity", "pattern")

Row = dict[str, Any]  # one creature: its seed, its index, its traits and its scores


def traits(case: Case) -> dict[str, Any]:
    """What may make a creature hard to copy, of the pixels that its video shows.

    `palette_contrast` is the least distance of two of its colours, `background_contrast` that of its mean colour to the
    background's, `brightness` its mean, all in 0-255 a channel (root mean square); `pixels` how many it covers;
    `changes` the share of neighbouring pixels that differ; `lost_detail` how far the reference is from what a small
    view keeps of it; `nearest_distractor` how far the most similar of the 15 others is, so how hard the test is.
    """
    clip = case.clip
    view = clip.creature.view(size=clip.size)
    inside = view.colours[view.silhouette].astype(np.float64)  # [pixels, 3]
    behind = draw_background(clip.background).reshape(-1, 3).astype(np.float64)
    others = distractors(clip.creature, case.distractor_rng())
    return {
        "size": clip.size,
        "motion": clip.motion,
        "background": clip.background,
        "reference": "turned" if case.mirrored != clip.mirrored else "as in the video",
        "palette_contrast": min(_rms(one - two) for one, two in combinations(view.palette.astype(np.float64), 2)),
        "background_contrast": min(_rms(inside.mean(axis=0) - colour) for colour in np.unique(behind, axis=0)),
        "brightness": float(inside.mean()),
        "pixels": len(inside),
        "changes": _changes(view),
        "lost_detail": _lost_detail(clip.creature, clip.size),
        "nearest_distractor": min(
            _rms(other.view(size=clip.size).colours[view.silhouette] - inside) for other in others
        ),
    }


def _rms(difference: np.ndarray) -> float:
    return float(np.sqrt(np.square(difference).mean()))


def _changes(view: Creature) -> float:
    """The share of neighbours within the silhouette whose colours differ."""
    differ = []
    for axis in (0, 1):
        both = _pairs(view.silhouette, axis)
        inside = both[0] & both[1]
        first, second = _pairs(view.colours, axis)
        differ.append((first != second).any(axis=-1)[inside])
    return float(np.concatenate(differ).mean())


def _pairs(values: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Every place and its neighbour along an axis."""
    return np.delete(values, -1, axis), np.delete(values, 0, axis)


def _lost_detail(creature: Creature, size: str) -> float:
    """Root mean square between the creature and its view of a size enlarged, over its silhouette; 0 for a big one."""
    step = SIZES[size]
    enlarged = creature.view(size=size).colours.repeat(step, axis=0).repeat(step, axis=1)
    return _rms((creature.colours.astype(np.float64) - enlarged)[creature.silhouette])


def creature_row(seed: int, index: int, case: Case, score: ClipScores) -> Row:
    """One creature's line: where it comes from, what it is like, how it was copied."""
    return {"seed": seed, "index": index, "traits": traits(case), "scores": asdict(score)}


def rate(rows: Sequence[Row], measure: str) -> dict[str, float] | None:
    """A measure of `RATES` over creatures, with Wilson's interval; `None` of none."""
    hits = [row["scores"][measure] for row in rows]
    return asdict(wilson(sum(hits), len(hits))) if hits else None


def of_size(rows: Iterable[Row], size: str) -> list[Row]:
    """The creatures of a size."""
    return [row for row in rows if row["traits"]["size"] == size]


def failures(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, Any]]]:
    """Identity and pattern by size, and within each size by each trait: `{size: {trait: {part: {measure: rate}}}}`.

    Numbers are cut into thirds of the creatures of that size, and a part's name says from where to where.
    """
    found = {}
    for size in SIZES:
        if alike := of_size(rows, size):
            parts = {EVERY: {EVERY: alike}, **{trait: _split(alike, trait) for trait in alike[0]["traits"]}}
            found[size] = {
                trait: {part: {name: rate(some, name) for name in _COPIED} for part, some in split.items()}
                for trait, split in parts.items()
                if len(split) > 1 or trait == EVERY
            }
    return found


def _split(rows: Sequence[Row], trait: str) -> dict[str, list[Row]]:
    """Creatures by a trait: by word, or by the third that their number lies in; those of one number stay together."""
    values = [row["traits"][trait] for row in rows]
    if isinstance(values[0], str):
        return {word: [row for row in rows if row["traits"][trait] == word] for word in sorted(set(values))}
    cuts = np.quantile(values, [1 / 3, 2 / 3])
    thirds = np.searchsorted(cuts, values)  # 0, 1 or 2
    parts = {}
    for number in sorted(set(thirds.tolist())):
        chosen = [value for value, third in zip(values, thirds, strict=True) if third == number]
        name = f"{min(chosen):.3g} to {max(chosen):.3g}"
        parts[name] = [row for row, third in zip(rows, thirds, strict=True) if third == number]
    return parts
