"""Batches in an order that a killed run takes up again where it stopped.

The order of an epoch is drawn from (seed, epoch), so neither the number of workers nor the number of ranks changes it,
and the place in the stream is two numbers.
"""

from __future__ import annotations

import collections
import itertools
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, default_collate

from videomaker.errors import InputError

from .check import describe_counts
from .dataset import MAX_ATTEMPTS, ClipDataset
from .order import Key, Order, epoch_order

__all__ = ["ClipLoader", "build_loader", "epoch_order"]

logger = logging.getLogger(__name__)


class ClipLoader:
    """An endless stream of batches for one rank, with a state.

    A step takes the next `world_size · batch_size` samples of the stream that all ranks share (see `order.Order`), so
    the same steps follow on any number of ranks with the same global batch size.

    Args:
        dataset: the samples.
        batch_size: samples of a batch of this rank.
        rank, world_size: of this process, and how many there are.
        num_workers: processes that read ahead.
        group: samples of one optimizer step over all ranks, which come from one bucket; 0: of one batch.
    """

    def __init__(
        self,
        dataset: ClipDataset,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        group: int = 0,
    ):
        self.dataset, self.batch_size, self.num_workers = dataset, batch_size, num_workers
        self.rank, self.world_size = rank, world_size
        self.order: Order = dataset.order(group or batch_size * world_size)
        self.skipped: collections.Counter[str] = collections.Counter()
        self._place = (0, 0)  # epoch and position in it of the next sample, for all ranks
        self._reported: set[str] = set()

    @property
    def epoch(self) -> int:
        """How many times every clip has been handed out."""
        return self._place[0]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        batches = DataLoader(
            self.dataset,
            batch_sampler=_keys(self.order, self._place, self.batch_size, self.rank, self.world_size),
            collate_fn=_collate,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
        )
        for batch in batches:
            self._count_skipped(batch.pop("skipped"))
            if "ids" not in batch:
                raise InputError(f"{MAX_ATTEMPTS} clips in a row cannot be read; run `videomaker data check MANIFEST`")
            self._place = self.order.advance(*self._place, self.batch_size * self.world_size)
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch handed out; JSON-able and the same on every rank."""
        return {
            "epoch": self._place[0],
            "position": self._place[1],
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
        # Another batch size with buckets, or other shares, may make an epoch shorter than it was.
        position = state["position"] - state["position"] % (self.order.group if self.dataset.config.buckets else 1)
        self._place = self.order.advance(state["epoch"], position, 0)

    def _count_skipped(self, skipped: list[tuple[str, str, str]]) -> None:
        for clip_id, reason, message in skipped:
            self.skipped[reason] += 1
            if clip_id not in self._reported:
                self._reported.add(clip_id)
                so_far = describe_counts(self.skipped.elements())
                logger.warning("clip %r skipped: %s (so far %s)", clip_id, message, so_far)


def build_loader(
    dataset: ClipDataset,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    group: int = 0,
) -> ClipLoader:
    """The loader of one rank; see `ClipLoader`.

    Raises:
        InputError: no bucket has clips for one step.
    """
    where = {"rank": rank, "world_size": world_size}
    return ClipLoader(dataset, batch_size=batch_size, num_workers=num_workers, group=group, **where)


def _keys(order: Order, place: tuple[int, int], batch_size: int, rank: int, world_size: int) -> Iterator[list[Key]]:
    """Endless batches of keys for one rank, from a place in the shared stream."""
    stream = order.stream(*place)
    while True:
        step = list(itertools.islice(stream, world_size * batch_size))
        yield step[rank * batch_size :][:batch_size]


def _collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    skipped = [skip for sample in samples for skip in sample.pop("skipped")]
    return {**(default_collate(samples) if all(samples) else {}), "skipped": skipped}
