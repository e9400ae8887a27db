"""Subject fidelity without any pretrained network: in the sprite world the truth is known, so it is looked up.

A creature is found by template matching over position, size and mirror. The score of a template at a place is a
log-likelihood ratio up to a factor: its squared colour error over the silhouette, minus that of the empty background.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from .world import (
    BACKGROUNDS,
    CANVAS,
    CELL,
    CREATURE,
    ENLARGEMENT,
    MOTIONS,
    SIZES,
    Clip,
    Creature,
    draw_background,
    random_creature,
)

NUM_CANDIDATES = 16  # of retrieval: the creature and 15 distractors; chance is 1/16


@dataclass(frozen=True)
class Sighting:
    """Where a creature was found in every frame, in the size and direction that fit the whole clip best."""

    score: float  # of the clip; lower is surer
    view: Creature
    size: str
    rows: np.ndarray  # [F], canvas pixels
    columns: np.ndarray  # [F]


@dataclass(frozen=True)
class ClipScores:
    """The measures of one clip; booleans average to rates."""

    identity: bool  # retrieved among distractors of the same silhouette; chance 1/16
    pattern: bool  # retrieved among distractors of the same silhouette and palette; chance 1/16
    motion: bool  # chance 1/8
    background: bool  # chance 1/8
    copied_background: bool  # the reference's background instead of the prompt's
    size: bool  # chance 1/2
    colour_distance: float  # root mean square over the creature's pixels, 0-255
    temporal_consistency: float  # 1 when the found creature's colours never change
    dynamic: bool  # the creature moves at all


def to_canvas(video: np.ndarray) -> np.ndarray:
    """Video `[F, 32, 32, 3]` in 0-255 as canvas pixels `[F, 16, 16, 3]` float: the mean of each 2×2 block."""
    side = CANVAS * ENLARGEMENT
    if video.shape[1:] != (side, side, 3):
        raise ValueError(f"a sprite video is [F, {side}, {side}, 3], got {list(video.shape)}")
    blocks = video.reshape(len(video), CANVAS, ENLARGEMENT, CANVAS, ENLARGEMENT, 3)
    return blocks.astype(np.float64).mean(axis=(2, 4))


def score_clip(
    video: np.ndarray, wanted: Clip, *, reference_background: str | None, rng: np.random.Generator
) -> ClipScores:
    """Measures a generated video against what was asked for.

    Args:
        video: `[8, 32, 32, 3]` in 0-255.
        wanted: the creature, motion, background and size that were asked for.
        reference_background: what the creature stood on in the reference; `None` is white.
        rng: draws the distractors.
    """
    canvas = to_canvas(video)
    shown = nearest_background(canvas, reference_background)
    search = Search(canvas, draw_background(shown))
    [found] = search.find([wanted.creature])
    colours = _found_colours(canvas, found)
    error = colours - found.view.colours[found.view.silhouette]
    return ClipScores(
        identity=search.prefers(wanted.creature, distractors(wanted.creature, rng)),
        pattern=search.prefers(wanted.creature, distractors(wanted.creature, rng, same_palette=True)),
        motion=nearest_motion(found) == wanted.motion,
        background=shown == wanted.background,
        copied_background=shown == reference_background,
        size=found.size == wanted.size,
        colour_distance=float(np.sqrt((error**2).mean())),
        temporal_consistency=float(1 - np.abs(np.diff(colours, axis=0)).mean() / 255),
        dynamic=bool(max(np.ptp(found.rows), np.ptp(found.columns)) >= CELL),
    )


def distractors(creature: Creature, rng: np.random.Generator, *, same_palette: bool = False) -> list[Creature]:
    """Fifteen others of the test split with the creature's silhouette, and if asked its palette."""
    shared = {"silhouette": creature.silhouette, "palette": creature.palette if same_palette else None}
    return [random_creature(rng, split="test", **shared) for _ in range(NUM_CANDIDATES - 1)]


class Search:
    """Template matching in the frames `[F, 16, 16, 3]` of one clip, whose background `[16, 16, 3]` is known."""

    def __init__(self, canvas: np.ndarray, background: np.ndarray):
        empty = background.astype(np.float64)
        sides = {size: CREATURE // step for size, step in SIZES.items()}
        # Σ (f − s)² − (f − b)² over a silhouette = Σ s² − 2 f·s + b·(2 f − b), with frame f, sprite s, background b.
        self.frames = {size: _windows(canvas, side) for size, side in sides.items()}
        self.against = {size: _windows(empty * (2 * canvas - empty), side) for size, side in sides.items()}

    def prefers(self, creature: Creature, others: Sequence[Creature]) -> bool:
        """Whether the creature fits the clip better than every other one."""
        scores = [sighting.score for sighting in self.find([creature, *others])]
        return scores[0] < min(scores[1:])

    def find(self, creatures: Sequence[Creature]) -> list[Sighting]:
        """Each creature's best place in every frame."""
        views = [(size, mirrored) for size in SIZES for mirrored in (False, True)]
        sightings = [self._find_views([c.view(size=size, mirrored=m) for c in creatures], size) for size, m in views]
        return [min(of_one, key=lambda sighting: sighting.score) for of_one in zip(*sightings, strict=True)]

    def _find_views(self, views: Sequence[Creature], size: str) -> list[Sighting]:
        masks = np.stack([np.repeat(view.silhouette[..., None], 3, axis=-1).ravel() for view in views])
        sprites = np.stack([view.colours.ravel() for view in views]) * masks.astype(np.float64)
        scores = (sprites**2).sum(axis=1) - 2 * self.frames[size] @ sprites.T + self.against[size] @ masks.T
        places = scores.argmin(axis=1).T  # of [F, places, views]
        sums = scores.min(axis=1).sum(axis=0)
        per_row = CANVAS - CREATURE // SIZES[size] + 1
        return [
            Sighting(float(score), view, size, *np.divmod(place, per_row))
            for score, view, place in zip(sums, views, places, strict=True)
        ]


def _windows(images: np.ndarray, side: int) -> np.ndarray:
    """Every square of `side` pixels of `[F, 16, 16, 3]` as a row: `[F, places, side·side·3]`."""
    windows = sliding_window_view(images, (side, side), axis=(1, 2))  # [F, rows, columns, 3, side, side]
    return windows.transpose(0, 1, 2, 4, 5, 3).reshape(len(images), -1, side * side * 3)


def _found_colours(canvas: np.ndarray, found: Sighting) -> np.ndarray:
    """Colours under the found silhouette, `[F, pixels, 3]`."""
    side = len(found.view.silhouette)
    places = zip(canvas, found.rows, found.columns, strict=True)
    return np.stack([frame[y : y + side, x : x + side][found.view.silhouette] for frame, y, x in places])


def nearest_motion(found: Sighting) -> str:
    """The motion whose track is nearest to the one that was found."""
    track = np.stack([found.rows, found.columns], axis=1)
    expected = {name: Clip(found.view, name, "", found.size).track for name in MOTIONS}
    return min(expected, key=lambda name: np.abs(track - np.array(expected[name])).sum())


def nearest_background(canvas: np.ndarray, reference_background: str | None) -> str | None:
    """The background that is nearest to the frames' median over time.

    White (`None`) is a candidate when the reference stands on white.
    """
    still = np.median(canvas, axis=0)
    candidates: list[str | None] = [*BACKGROUNDS, *([None] if reference_background is None else [])]
    return min(candidates, key=lambda name: np.median(np.abs(still - draw_background(name)).sum(axis=-1)))
