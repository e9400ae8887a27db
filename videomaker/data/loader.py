"""Batches in an order that a killed run takes up again where it stopped.

The order of an epoch is drawn from (seed, epoch), so neither the number of workers nor the number of ranks changes it,
and the position in the stream is one number.
"""

from __future__ import annotations

import collections
import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, default_collate

from videomaker.errors import InputError

from .check import describe_counts
from .dataset import MAX_ATTEMPTS, ClipDataset
from .manifest import Clip

logger = logging.getLogger(__name__)


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
