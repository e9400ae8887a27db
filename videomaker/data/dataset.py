"""Clips with their references, in an order that a killed run takes up again where it stopped.

Everything random in a sample is drawn from (seed, epoch, clip) and the order of an epoch from (seed, epoch), so
neither the number of workers nor the number of ranks changes a sample, and the place in the stream is two numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from videomaker.digests import sha256
from videomaker.errors import InputError

from .buckets import Shape, check_groups, choose_shape, frames_needed
from .check import check_files
from .journal import read_refusals
from .manifest import Clip, Reference, read_manifest
from .order import Order
from .ranges import AboveZero, Count, NonNegative, Positive
from .reference import (
    OBJECTS,
    Augmentation,
    augment_reference,
    compose_reference,
    fill_frame,
    to_tensor,
)
from .remote import local_manifest
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

    manifest: str | tuple[str, ...] = ""  # one or several; a path, or the URL of one whose clips are in shards
    weights: tuple[AboveZero, ...] = ()  # of several manifests: the share of each in every epoch; empty: by their clips
    split: str = "train"  # "": all
    num_frames: Positive = 16
    frame_stride: Positive = 8
    fps: NonNegative = 0.0  # frames of a sample for a second of the video, instead of frame_stride; 0: off
    height: Positive = 512
    width: Positive = 512
    # Several [num_frames, height, width] instead of one: a clip goes where it fits best, a step takes one of them
    buckets: tuple[tuple[Positive, Positive, Positive], ...] = ()
    highlight: bool = True  # the reference through its mask on white; False: raw (the paper's Table 3)
    crop_to_subject: bool = False  # crop the reference to its box and pad it with white, as VideoBooth does
    augmentation: Augmentation = OBJECTS
    long_captions: Literal["error", "truncate"] = "error"  # more than the text encoder's 77 tokens
    bad_clips: Literal["error", "skip"] = "error"  # missing, not a video or without frames, before the first step
    num_workers: Count = 4
    cache: str = ""  # folder made by `videomaker data cache`
    downloads: str = ""  # folder for shards of manifests that are URLs; "": in the user's cache

    @property
    def manifests(self) -> tuple[str, ...]:
        """The paths or URLs."""
        return (self.manifest,) if isinstance(self.manifest, str) else tuple(self.manifest)

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """What samples may be."""
        return tuple(starmap(Shape, self.buckets or ((self.num_frames, self.height, self.width),)))

    def step(self, rate: float | None) -> float:
        """Frames of a video of `rate` frames a second from one frame of a sample to the next."""
        return rate / self.fps if self.fps and rate else self.frame_stride


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
    _check_config(config, cache)
    samples: list[Sample] = []
    for source, name in enumerate(config.manifests):
        samples += _read_source(config, source, name, rank=rank, world_size=world_size)
    return ClipDataset(config, samples, seed=seed, cache=cache)


@dataclass(frozen=True)
class Sample:
    """A clip of a run: where it comes from and what is made of it."""

    clip: Clip
    root: Path  # folder that its paths are relative to
    source: int = 0  # number of its manifest
    shape: int = 0  # number of its shape among `DataConfig.shapes`
    refused: ClipError | None = None  # by the last `videomaker data check`


def _read_source(config: DataConfig, source: int, name: str, *, rank: int, world_size: int) -> list[Sample]:
    manifest = local_manifest(name, config.downloads)
    listed = read_manifest(manifest, split=config.split)
    chosen = [(clip, choose_shape(clip, config.shapes, config.step(clip.fps))) for clip in listed]
    found = [(clip, shape) for clip, shape in chosen if shape is not None and not _too_slow(config, clip.fps)]
    if not found:
        raise InputError(f"no clip of {name} {_why_none(config, listed)}")
    if len(found) < len(listed) and rank == 0:
        logger.warning("%d of %d clips left out: too short", len(listed) - len(found), len(listed))
    clips = [clip for clip, _ in found]
    if config.highlight:
        _check_masks(clips)
    refused = read_refusals(manifest, clips)
    allow_bad, share = config.bad_clips == "skip", clips[rank::world_size]
    check_files(share, manifest.parent, refused=refused, allow_bad=allow_bad, show=rank == 0)
    return [Sample(clip, manifest.parent, source, shape, refused.get(clip.id)) for clip, shape in found]


def _too_slow(config: DataConfig, rate: float | None) -> bool:
    """Whether a video of `rate` frames a second would have to show frames twice to give `config.fps`."""
    return bool(config.fps and rate and rate < 0.99 * config.fps)  # 23.976 for 24 will do


def _why_none(config: DataConfig, clips: Sequence[Clip]) -> str:
    if all(_too_slow(config, clip.fps) for clip in clips):
        return f"has the {config.fps:g} frames a second of data.fps; lower it"
    shortest = min(shape.num_frames for shape in config.shapes)
    if config.fps:
        return f"lasts for {shortest} frames at data.fps={config.fps:g}; lower data.num_frames or raise data.fps"
    return (
        f"has the {frames_needed(shortest, config.frame_stride)} frames that {shortest} frames at stride "
        f"{config.frame_stride} need; lower data.num_frames or data.frame_stride"
    )


class ClipDataset(Dataset):
    """Samples by key (epoch, index of the clip)."""

    def __init__(self, config: DataConfig, samples: Sequence[Sample], *, seed: int, cache: CachedClips | None = None):
        self.config, self.samples, self.seed, self.cache = config, samples, seed, cache
        self.clips = [sample.clip for sample in samples]
        names = [f"{one.source}:{one.clip.id}" if one.source else one.clip.id for one in samples]
        self.fingerprint = sha256("\n".join(names))[:16]
        self._peers: dict[int, list[int]] = {}
        for index, one in enumerate(samples):
            self._peers.setdefault(one.shape, []).append(index)

    def order(self, group: int) -> Order:
        """The order of the samples.

        Args:
            group: samples of one optimizer step, over all ranks, which come from one bucket.

        Raises:
            InputError: no bucket has so many clips.
        """
        config, buckets = self.config, None
        if config.buckets:
            buckets = [sample.shape for sample in self.samples]
            if small := check_groups(config.shapes, buckets, group):
                logger.warning("buckets with fewer clips than a step's %d are left out: %s", group, "; ".join(small))
        sources = [sample.source for sample in self.samples]
        return Order(self.clips, seed=self.seed, sources=sources, shares=config.weights, buckets=buckets, group=group)

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
        peers = self._peers[self.samples[index].shape]
        for attempt in range(MAX_ATTEMPTS):
            rng = np.random.default_rng([self.seed, epoch, index, attempt])
            sample = self.samples[peers[int(rng.integers(len(peers)))] if attempt else index]
            clip = sample.clip
            try:
                return {**self._load(sample, rng), "skipped": skipped}
            except ClipError as error:
                skipped.append((clip.id, error.reason, str(error)))
            except (ArithmeticError, AttributeError, LookupError, OSError, TypeError) as error:
                # Of damaged files libraries raise anything, and one clip must not cost the run.
                skipped.append((clip.id, "broken", f"{type(error).__name__}: {error}"))
        return {"skipped": skipped}

    def _load(self, sample: Sample, rng: np.random.Generator) -> dict[str, Any]:
        if sample.refused:
            raise sample.refused
        clip, shape = sample.clip, self.config.shapes[sample.shape]
        caption = int(rng.integers(len(clip.captions)))
        loaded: dict[str, Any] = {"ids": clip.id, "caption": clip.captions[caption]}
        with open_video(clip_file(sample.root, clip, clip.video)) as video:
            if self.cache:
                loaded |= self.cache.read(clip, caption=caption, rng=rng)
            else:
                loaded["pixel_values"] = decode_window(video, self.config, position=rng.random(), shape=shape)
            loaded["reference"] = self._reference(sample, shape, video, rng)[:, None]
        return loaded

    def _reference(self, sample: Sample, shape: Shape, video: Video, rng: np.random.Generator) -> torch.Tensor:
        """The augmented reference, float32 `[C, H, W]`."""
        clip, root = sample.clip, sample.root
        candidates = clip.refs or spread_frames(video.num_frames)
        ref = candidates[rng.integers(len(candidates))]
        image = reference_picture(root, clip, ref, video)
        mask = load_mask(root, clip, ref.mask) if ref.mask and self.config.highlight else None
        try:
            image = self._compose(ref, shape, image, mask)
        except ValueError as error:
            raise ClipError("bad reference", str(error)) from error
        return augment_reference(to_tensor(image), self.config.augmentation, rng)

    def _compose(self, ref: Reference, shape: Shape, image: Image.Image, mask: Image.Image | None) -> Image.Image:
        # A picture of its own may have any shape and loses nothing; a frame is cut like the other frames.
        return compose_reference(
            image,
            height=shape.height,
            width=shape.width,
            mask=mask,
            box=ref.box if self.config.crop_to_subject else None,
            cut=not ref.image,
        )


def decode_window(video: Video, config: DataConfig, *, position: float, shape: Shape | None = None) -> torch.Tensor:
    """A sample's frames, float32 `[C, F, H, W]` in [-1, 1].

    Args:
        video: the clip.
        config: the stride, or the frames a second.
        position: where the window starts, as a fraction in [0, 1) of the possible starts.
        shape: the number of frames and their size; None: `config`'s own.

    Raises:
        ClipError: too short, too slow, or broken.
    """
    num_frames, height, width = shape or config.shapes[0]
    if config.fps and _too_slow(config, video.rate):
        raise ClipError("low frame rate", f"{video.rate:.3g} frames a second, {config.fps:g} needed")
    stride = config.step(video.rate) if config.fps else config.frame_stride
    frames = video.read(video.window(position, num_frames=num_frames, stride=stride))
    return torch.stack([to_tensor(fill_frame(frame, height=height, width=width)) for frame in frames], 1)


def spread_frames(num_frames: int) -> list[Reference]:
    """The references of a clip whose manifest names none: frames in the middle of equal parts."""
    return [Reference(frame=int((k + 0.5) * num_frames / REFERENCE_FRAMES)) for k in range(REFERENCE_FRAMES)]


def _check_config(config: DataConfig, cache: CachedClips | None) -> None:
    if not all(config.manifests) or not config.manifests:
        raise InputError("no manifest: set data.manifest=FILE.jsonl; `videomaker data index` makes one")
    if config.weights and len(config.weights) != len(config.manifests):
        raise InputError(
            f"data.weights has {len(config.weights)} numbers for {len(config.manifests)} manifests: give one for each"
        )
    if cache is not None and (len(config.manifests) > 1 or config.buckets):
        raise InputError(
            "data.cache holds one manifest in one size: leave out data.cache, or data.buckets and the rest"
        )
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
