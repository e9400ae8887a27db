"""Clips with their references, in an order that a killed run takes up again where it stopped.

Everything random in a sample is drawn from (seed, epoch, clip) and the order of an epoch from (seed, epoch), so
neither the number of workers nor the number of ranks changes a sample, and the position in the stream is one number.
"""

from __future__ import annotations

import collections
import hashlib
import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from videomaker.errors import InputError

from .augment import OBJECTS, Augmentation, augment_reference
from .check import check_files, describe_counts
from .manifest import Clip, Reference, read_manifest
from .reference import crop_to_box, fill_frame, mask_on_white, pad_to_frame, to_tensor
from .shards import clip_file, load_image
from .video import ClipError, Video, open_video

if TYPE_CHECKING:
    from PIL import Image

    from .cache import LatentCache

MAX_ATTEMPTS = 16  # clips tried for one sample before giving up
REFERENCE_FRAMES = 4  # frames of a clip that may be its reference, when the manifest names none

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataConfig:
    """What a training sample is made of."""

    manifest: str = ""
    split: str = "train"  # "": all
    num_frames: int = 16
    frame_stride: int = 8
    height: int = 512
    width: int = 512
    highlight: bool = True  # the reference through its mask on white; False: raw (the paper's Table 3)
    crop_to_subject: bool = False  # crop the reference to its box and pad it with white, as VideoBooth does
    augmentation: Augmentation = OBJECTS
    long_captions: Literal["error", "truncate"] = "error"  # more than the text encoder's 77 tokens
    bad_clips: Literal["error", "skip"] = "error"  # missing, not a video or without frames, before the first step
    num_workers: int = 4
    cache: str = ""  # folder made by `videomaker data cache`

    @property
    def span(self) -> int:
        """Frames of the video from the first to the last frame of a sample."""
        return self.frame_stride * (self.num_frames - 1) + 1


def build_dataset(
    config: DataConfig, *, seed: int, rank: int = 0, world_size: int = 1, cache: LatentCache | None = None
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
    check_files(clips[rank::world_size], root, allow_bad=config.bad_clips == "skip", show=rank == 0)
    return ClipDataset(config, clips, seed=seed, cache=cache)


class ClipDataset(Dataset):
    """Samples by key (epoch, index of the clip)."""

    def __init__(self, config: DataConfig, clips: Sequence[Clip], *, seed: int, cache: LatentCache | None = None):
        self.config, self.clips, self.seed, self.cache = config, clips, seed, cache
        self.root = Path(config.manifest).parent
        self.fingerprint = hashlib.sha256("\n".join(clip.id for clip in clips).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """One sample. A clip that cannot be read gives way to another one, drawn from the same seed.

        Returns:
            "pixel_values" `[C, F, H, W]` and "reference" `[C, 1, H, W]`, float32 in [-1, 1]; "caption", "ids"; and
            "skipped", a list of (id, reason, message). Only "skipped" when no clip could be read.
        """
        epoch, index = key
        skipped = []
        for attempt in range(MAX_ATTEMPTS):
            rng = np.random.default_rng([self.seed, epoch, index, attempt])
            clip = self.clips[rng.integers(len(self)) if attempt else index]
            try:
                return {**self._load(clip, rng), "skipped": skipped}
            except ClipError as error:
                skipped.append((clip.id, error.reason, str(error)))
        return {"skipped": skipped}

    def _load(self, clip: Clip, rng: np.random.Generator) -> dict[str, Any]:
        caption = rng.integers(len(clip.captions))
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
        image = load_image(self.root, clip, ref.image) if ref.image else video.read([ref.frame])[0]
        mask = load_image(self.root, clip, ref.mask) if ref.mask and self.config.highlight else None
        try:
            image = self._compose(ref, image, mask)
        except ValueError as error:
            raise ClipError("bad reference", str(error)) from error
        return augment_reference(to_tensor(image), self.config.augmentation, rng)

    def _compose(self, ref: Reference, image: Image.Image, mask: Image.Image | None) -> Image.Image:
        size = {"height": self.config.height, "width": self.config.width}
        if mask:
            image = mask_on_white(image, mask)
        if self.config.crop_to_subject and ref.box:
            return pad_to_frame(crop_to_box(image, ref.box), **size)
        # A picture of its own may have any shape and loses nothing; a frame is cut like the other frames.
        return pad_to_frame(image, **size) if ref.image else fill_frame(image, **size)


def decode_window(video: Video, config: DataConfig, *, position: float) -> torch.Tensor:
    """A sample's frames, float32 `[C, F, H, W]` in [-1, 1].

    Args:
        video: the clip.
        config: the number of frames, their stride and their size.
        position: where the window starts, as a fraction in [0, 1) of the possible starts.

    Raises:
        ClipError: too short, or broken.
    """
    num_starts = video.num_frames - config.span + 1
    if num_starts < 1:
        raise ClipError("too short", f"{video.num_frames} frames, {config.span} needed")
    start = int(position * num_starts)
    frames = video.read(range(start, start + config.span, config.frame_stride))
    return torch.stack([to_tensor(fill_frame(frame, height=config.height, width=config.width)) for frame in frames], 1)


def spread_frames(num_frames: int) -> list[Reference]:
    """The references of a clip whose manifest names none: frames in the middle of equal parts."""
    return [Reference(frame=int((k + 0.5) * num_frames / REFERENCE_FRAMES)) for k in range(REFERENCE_FRAMES)]


class ClipLoader:
    """An endless stream of batches for one rank, with a state.

    Sample `n` of the stream that all ranks share is clip `order(epoch)[n % num_clips]` of epoch `n // num_clips`. A
    step takes the next `world_size · batch_size` samples, so the same steps follow on any number of ranks with the
    same global batch size.
    """

    def __init__(
        self, dataset: ClipDataset, *, batch_size: int, rank: int = 0, world_size: int = 1, num_workers: int = 0
    ):
        self.dataset, self.batch_size, self.num_workers = dataset, batch_size, num_workers
        self.rank, self.world_size = rank, world_size
        self.skipped: collections.Counter[str] = collections.Counter()
        self._consumed = 0  # samples handed out on all ranks
        self._reported: set[str] = set()

    @property
    def epoch(self) -> int:
        """How many times every clip has been handed out."""
        return self._consumed // len(self.dataset)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        batches = DataLoader(
            self.dataset,
            batch_sampler=_keys(self.dataset, self._consumed, self.batch_size, self.rank, self.world_size),
            collate_fn=_collate,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
        )
        for batch in batches:
            self._count_skipped(batch.pop("skipped"))
            if "ids" not in batch:
                raise InputError(f"{MAX_ATTEMPTS} clips in a row cannot be read; run `videomaker data check MANIFEST`")
            self._consumed += self.batch_size * self.world_size
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch handed out; JSON-able and the same on every rank."""
        return {
            "epoch": self.epoch,
            "position": self._consumed % len(self.dataset),
            "seed": self.dataset.seed,
            "num_clips": len(self.dataset),
            "fingerprint": self.dataset.fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a state, on any number of ranks; takes effect with the next `iter`.

        Raises:
            InputError: the state is of other clips or of another seed.
        """
        now = self.state_dict()
        if (state["num_clips"], state["fingerprint"]) != (now["num_clips"], now["fingerprint"]):
            raise InputError(
                f"the manifest changed since the checkpoint: {state['num_clips']} clips then, {now['num_clips']} now, "
                "or others; bring back the old one, or start a new run"
            )
        if state["seed"] != now["seed"]:
            raise InputError(
                f"the checkpoint's data has seed {state['seed']}, not {now['seed']}; set seed={state['seed']}"
            )
        self._consumed = state["epoch"] * state["num_clips"] + state["position"]

    def _count_skipped(self, skipped: list[tuple[str, str, str]]) -> None:
        for clip_id, reason, message in skipped:
            self.skipped[reason] += 1
            if clip_id not in self._reported:
                self._reported.add(clip_id)
                so_far = describe_counts(self.skipped.elements())
                logger.warning("clip %r skipped: %s (so far %s)", clip_id, message, so_far)


def build_loader(
    dataset: ClipDataset, *, batch_size: int, rank: int = 0, world_size: int = 1, num_workers: int = 0
) -> ClipLoader:
    """The loader of one rank; see `ClipLoader`."""
    return ClipLoader(dataset, batch_size=batch_size, rank=rank, world_size=world_size, num_workers=num_workers)


def epoch_order(clips: Sequence[Clip], *, seed: int, epoch: int) -> np.ndarray:
    """A permutation of the clips' indices.

    Clips of a shard stay together, shards and the clips within each in random order, so that shards are read one
    after the other.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(clips))
    _, shard = np.unique([clip.shard or "" for clip in clips], return_inverse=True)
    shard_position = rng.permutation(shard.max() + 1)[shard]
    return order[np.argsort(shard_position[order], kind="stable")]


def _keys(
    dataset: ClipDataset, start: int, batch_size: int, rank: int, world_size: int
) -> Iterator[list[tuple[int, int]]]:
    """Endless batches of (epoch, index) for one rank, from sample `start` of the shared stream."""
    epoch, order = -1, np.empty(0, int)
    for first in itertools.count(start + rank * batch_size, world_size * batch_size):
        batch = []
        for sample in range(first, first + batch_size):
            if sample // len(dataset) != epoch:
                epoch = sample // len(dataset)
                order = epoch_order(dataset.clips, seed=dataset.seed, epoch=epoch)
            batch.append((epoch, int(order[sample % len(dataset)])))
        yield batch


def _collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    skipped = [skip for sample in samples for skip in sample.pop("skipped")]
    return {**(default_collate(samples) if all(samples) else {}), "skipped": skipped}


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
