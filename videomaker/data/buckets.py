"""Sizes and lengths of samples: one for all, or the bucket that fits a clip best."""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence
from typing import NamedTuple

from videomaker.errors import InputError

from .manifest import Clip


class Shape(NamedTuple):
    """Of a sample's frames: how many, and their size in pixels."""

    num_frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.num_frames} frames of {self.width}x{self.height}"


def frames_needed(num_frames: int, step: float) -> int:
    """Frames of a video from the first to the last of a window whose frames are `step` apart."""
    return round((num_frames - 1) * step) + 1


def choose_shape(clip: Clip, shapes: Sequence[Shape], step: float) -> int | None:
    """The index of the shape that fits a clip best, None when the clip is too short for every one.

    Of the shapes that the clip has frames for, the one of the nearest aspect; of several of those, one that need not
    enlarge it, then the longest, then the largest.

    Args:
        clip: with what the manifest knows of it.
        shapes: to choose from.
        step: frames of the video from one frame of a window to the next.

    Raises:
        InputError: there are several shapes and the manifest does not know the clip's size.
    """
    fitting = [
        (number, shape)
        for number, shape in enumerate(shapes)
        if not clip.num_frames or clip.num_frames >= frames_needed(shape.num_frames, step)
    ]
    if not fitting or len(shapes) == 1:
        return fitting[0][0] if fitting else None
    if not (clip.width and clip.height and clip.num_frames):
        raise InputError(
            f"data.buckets needs num_frames, width and height of every clip and the manifest has none of {clip.id!r}: "
            "make it with `videomaker data index`"
        )
    aspect, pixels = math.log(clip.width / clip.height), clip.width * clip.height

    def unfitness(candidate: tuple[int, Shape]) -> tuple:
        shape = candidate[1]
        off = round(abs(math.log(shape.width / shape.height) - aspect), 6)
        return off, shape.height * shape.width > pixels, -shape.num_frames, -shape.height * shape.width

    return min(fitting, key=unfitness)[0]


def check_groups(shapes: Sequence[Shape], buckets: Sequence[int], group: int) -> list[str]:
    """What is worth a word: the buckets that have fewer clips than a step takes, so that they are never trained on.

    Raises:
        InputError: none has enough.
    """
    counts = collections.Counter(buckets)
    small = [f"{shapes[number]}: {counts[number]}" for number in sorted(counts) if counts[number] < group]
    if len(small) == len(counts):
        raise InputError(
            f"a step takes {group} clips of one bucket and none has as many ({'; '.join(small)}): lower batch_size, or "
            "give fewer data.buckets"
        )
    return small
