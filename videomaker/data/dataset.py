"""Clips with their references, in an order that a killed run takes up again where it stopped.

Everything random in a sample is drawn from (seed, epoch, clip) and the order of an epoch from (seed, epoch), so
neither the number of workers nor the number of ranks changes a sample, and the position in the stream is one number.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from videomaker.digests import sha256
from videomaker.errors import InputError

from .check import check_files
from .journal import read_refusals
from .manifest import Clip, Reference, read_manifest
from .ranges import Count, Positive
from .reference import (
    OBJECTS,
    Augmentation,
    augment_reference,
    compose_reference,
    fill_frame,
    to_tensor,
)
from .shards import clip_file, load_mask, reference_picture
from .video import ClipError, Video, open_video

if TYPE_CHECKING:
    from PIL import Image

MAX_ATTEMPTS = 16  # clips tried for one sample before giving up
REFERENCE_FRAMES = 4  # frames of a clip that may be its reference, when the manifest names none

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataConfig:
    """What a training sample is made of."""

    manifest: str = ""
    split: str = "train"  # "": all
    num_frames: Positive = 16
    frame_stride: Positive = 8
    height: Positive = 512
    width: Positive = 512
    highlight: bool = True  # the reference through its mask on white; False: raw (the paper's Table 3)
    crop_to_subject: bool = False  # crop the reference to its box and pad it with white, as VideoBooth does
    augmentation: Augmentation = OBJECTS
    long_captions: Literal["error", "truncate"] = "error"  # more than the text encoder's 77 tokens
    bad_clips: Literal["error", "skip"] = "error"  # missing, not a video or without frames, before the first step
    num_workers: Count = 4
    cache: str = ""  # folder made by `videomaker data cache`

    @property
    def span(self) -> int:
        """Frames of the video from the first to the last frame of a sample."""
        return self.frame_stride * (self.num_frames - 1) + 1


class CachedClips(Protocol):
    """What was encoded ahead: `videomaker.data.cache.LatentCache`."""

    def read(self, clip: Clip, *, caption: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """Latents of one window and embeddings of one caption."""


def build_dataset(
    config: DataConfig, *, seed: int, rank: int = 0, world_size: int = 1, cache: CachedClips | None = None
) -> ClipDataset:
    """Reads the manifest and checks it and its files before the first step.

    Clips that the manifest knows to be too short are left out, with a count. Each rank checks its share of
    the files; which clips remain does not depend on the rank.

    Raises:
        InputError: the manifest is empty or malformed, files are missing or no videos, clips have no mask although
            `highlight` asks for one, or no clip is long enough.
    """
    _check_config(config)
    root = Path(config.manifest).parent
    listed = read_manifest(config.manifest, split=config.split)
    clips = [clip for clip in listed if not clip.num_frames or clip.num_frames >= config.span]
    if not clips:
        raise InputError(
            f"no clip of {config.manifest} has the {config.span} frames that {config.num_frames} frames at stride "
            f"{config.frame_stride} need; lower data.num_frames or data.frame_stride"
        )
    if len(clips) < len(listed) and rank == 0:
        logger.warning("%d of %d clips left out: too short", len(listed) - len(clips), len(listed))
    if config.highlight:
        _check_masks(clips)
    refused = read_refusals(Path(config.manifest), clips)
    check_files(clips[rank::world_size], root, refused=refused, allow_bad=config.bad_clips == "skip", show=rank == 0)
    return ClipDataset(config, clips, seed=seed, cache=cache, refused=refused)


class ClipDataset(Dataset):
    """Samples by key (epoch, index of the clip)."""

    def __init__(
        self,
        config: DataConfig,
        clips: Sequence[Clip],
        *,
        seed: int,
        cache: CachedClips | None = None,
        refused: Mapping[str, ClipError] | None = None,
    ):
        self.refused = refused or {}  # never read, by id
        self.config, self.clips, self.seed, self.cache = config, clips, seed, cache
        self.root = Path(config.manifest).parent
        self.fingerprint = sha256("\n".join(clip.id for clip in clips))[:16]

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """One sample. A clip that cannot be read gives way to another one, drawn from the same seed.

        Returns:
            "pixel_values" `[C, F, H, W]` and "reference" `[C, 1, H, W]`, float32 in [-1, 1]; "caption", "ids"; and
            "skipped", a list of (id, reason, message). Only "skipped" when no clip could be read.
        """
        epoch, index = key
        skipped: list[tuple[str, str, str]] = []
        for attempt in range(MAX_ATTEMPTS):
            rng = np.random.default_rng([self.seed, epoch, index, attempt])
            clip = self.clips[int(rng.integers(len(self))) if attempt else index]
            try:
                return {**self._load(clip, rng), "skipped": skipped}
            except ClipError as error:
                skipped.append((clip.id, error.reason, str(error)))
            except (ArithmeticError, AttributeError, LookupError, OSError, TypeError) as error:
                # Of damaged files libraries raise anything, and one clip must not cost the run.
                skipped.append((clip.id, "broken", f"{type(error).__name__}: {error}"))
        return {"skipped": skipped}

    def _load(self, clip: Clip, rng: np.random.Generator) -> dict[str, Any]:
        if clip.id in self.refused:
            raise self.refused[clip.id]
        caption = int(rng.integers(len(clip.captions)))
        sample: dict[str, Any] = {"ids": clip.id, "caption": clip.captions[caption]}
        with open_video(clip_file(self.root, clip, clip.video)) as video:
            if self.cache:
                sample |= self.cache.read(clip, caption=caption, rng=rng)
            else:
                sample["pixel_values"] = decode_window(video, self.config, position=rng.random())
            sample["reference"] = self._reference(clip, video, rng)[:, None]
        return sample

    def _reference(self, clip: Clip, video: Video, rng: np.random.Generator) -> torch.Tensor:
        """The augmented reference, float32 `[C, H, W]`."""
        candidates = clip.refs or spread_frames(video.num_frames)
        ref = candidates[rng.integers(len(candidates))]
        image = reference_picture(self.root, clip, ref, video)
        mask = load_mask(self.root, clip, ref.mask) if ref.mask and self.config.highlight else None
        try:
            image = self._compose(ref, image, mask)
        except ValueError as error:
            raise ClipError("bad reference", str(error)) from error
        return augment_reference(to_tensor(image), self.config.augmentation, rng)

    def _compose(self, ref: Reference, image: Image.Image, mask: Image.Image | None) -> Image.Image:
        # A picture of its own may have any shape and loses nothing; a frame is cut like the other frames.
        return compose_reference(
            image,
            height=self.config.height,
            width=self.config.width,
            mask=mask,
            box=ref.box if self.config.crop_to_subject else None,
            cut=not ref.image,
        )


def decode_window(video: Video, config: DataConfig, *, position: float) -> torch.Tensor:
    """A sample's frames, float32 `[C, F, H, W]` in [-1, 1].

    Args:
        video: the clip.
        config: the number of frames, their stride and their size.
        position: where the window starts, as a fraction in [0, 1) of the possible starts.

    Raises:
        ClipError: too short, or broken.
    """
    frames = video.read(video.window(position, num_frames=config.num_frames, stride=config.frame_stride))
    return torch.stack([to_tensor(fill_frame(frame, height=config.height, width=config.width)) for frame in frames], 1)


def spread_frames(num_frames: int) -> list[Reference]:
    """The references of a clip whose manifest names none: frames in the middle of equal parts."""
    return [Reference(frame=int((k + 0.5) * num_frames / REFERENCE_FRAMES)) for k in range(REFERENCE_FRAMES)]


def _check_config(config: DataConfig) -> None:
    if not config.manifest:
        raise InputError("no manifest: set data.manifest=FILE.jsonl; `videomaker data index` makes one")
    for name in ("num_frames", "frame_stride", "height", "width"):
        if getattr(config, name) < 1:
            raise InputError(f"data.{name}={getattr(config, name)} should be at least 1")


def _check_masks(clips: Sequence[Clip]) -> None:
    """A given picture may already be on white; a frame of the clip needs a mask."""
    bare = [clip.id for clip in clips if not clip.refs or any(not ref.image and not ref.mask for ref in clip.refs)]
    if bare:
        raise InputError(
            f"{len(bare)} of {len(clips)} clips have no mask for their reference, first {bare[0]!r}; make masks with "
            "`videomaker data highlight`, or train on raw frames with data.highlight=false"
        )
