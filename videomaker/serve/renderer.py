"""What a worker needs of a model: `Renderer`. `loading` chooses one: `model_renderer`, or `fake`, which only counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

from .config import Shape


@dataclass(frozen=True)
class RenderJob:
    """One video to make: the accepted request, and its pictures in the video's shape."""

    id: str
    request: dict[str, Any]
    references: tuple[Image.Image, ...]


@dataclass(frozen=True)
class Made:
    """Frames `[F, H, W, 3]` of uint8, how often each pixel is repeated in the file, and what they were made from."""

    frames: np.ndarray
    upscale: int
    record: dict[str, Any]


@dataclass(frozen=True)
class Failed:
    """Why a video was not made: a word for programs, a line for people."""

    code: str
    message: str


class OutOfMemory(Exception):
    """The device's memory does not suffice for this many videos at once."""


class Renderer(Protocol):
    """A loaded model on one device."""

    device: str

    def warm_up(self, shapes: Sequence[Shape]) -> None:
        """Makes ready for the declared shapes, or for the model's own."""

    def render(self, jobs: Sequence[RenderJob], size: int, on_step: Callable[[], None]) -> list[Made | Failed]:
        """Makes the videos of one bucket together.

        Args:
            jobs: up to `size` of them.
            size: videos in the pass; it is padded up to that, so that a job's bits do not depend on its company.
            on_step: called after every denoising step; what it raises ends the pass.

        Raises:
            OutOfMemory: there is no room for `size` videos.
        """
