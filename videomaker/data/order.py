"""The order of the samples: epochs of keys that depend on the seed alone, so that any point of it is found again.

Several manifests with shares are mixed so that every epoch holds each in its share; a manifest with a small one is not
through when the epoch ends and goes on in the next. With buckets, the samples of one optimizer step come from one.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from .manifest import Clip

Key = tuple[int, int]  # (how often the clip's manifest went by before, index of the clip)


class Order:
    """The stream of samples that all ranks share.

    Args:
        clips: of all manifests.
        seed: of the run.
        sources: the manifest of each clip, as a number; None is one for all.
        shares: of the manifests, each above 0; empty takes all clips alike.
        buckets: the bucket of each clip, as a number; None is one for all.
        group: samples in a row from one bucket.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        *,
        seed: int,
        sources: Sequence[int] | None = None,
        shares: Sequence[float] = (),
        buckets: Sequence[int] | None = None,
        group: int = 1,
    ):
        self.clips, self.seed, self.buckets, self.group = clips, seed, buckets, group
        numbers = np.zeros(len(clips), int) if sources is None or not shares else np.asarray(sources)
        self._members = [np.flatnonzero(numbers == number) for number in range(max(1, len(shares)))]
        self._shares = np.asarray(shares or [1.0]) / sum(shares or [1.0])
        self.epoch = lru_cache(maxsize=4)(self._epoch)
        self._source_order = lru_cache(maxsize=2 * len(self._members) + 2)(self._order_of_source)

    def _epoch(self, number: int) -> tuple[Key, ...]:
        """The keys of epoch `number`, in order."""
        keys = self._mixed(number)
        return tuple(keys if self.buckets is None else self._in_groups(keys, self.buckets))

    def stream(self, epoch: int, position: int) -> Iterator[Key]:
        """The keys from a position on, without end."""
        while True:
            keys = self.epoch(epoch)
            yield from keys[position:]
            epoch, position = epoch + 1, 0

    def advance(self, epoch: int, position: int, count: int) -> tuple[int, int]:
        """The place `count` samples later."""
        position += count
        while position >= (length := len(self.epoch(epoch))):
            epoch, position = epoch + 1, position - length
        return epoch, position

    def _mixed(self, epoch: int) -> Iterator[Key]:
        total = len(self.clips)
        before, after = (np.floor(e * total * self._shares + 1e-9).astype(int) for e in (epoch, epoch + 1))
        sources = np.repeat(np.arange(len(self._members)), after - before)
        if len(self._members) > 1:
            sources = np.random.default_rng([self.seed, epoch, len(self._members)]).permutation(sources)
        done = before.tolist()
        for source in sources.tolist():
            members = self._members[source]
            own_epoch, place = divmod(done[source], len(members))
            done[source] += 1
            yield own_epoch, int(self._source_order(source, own_epoch)[place])

    def _order_of_source(self, source: int, epoch: int) -> np.ndarray:
        members = self._members[source]
        chosen = self.clips if len(members) == len(self.clips) else [self.clips[index] for index in members.tolist()]
        return members[epoch_order(chosen, seed=self.seed, epoch=epoch, source=source)]

    def _in_groups(self, keys: Iterator[Key], buckets: Sequence[int]) -> Iterator[Key]:
        """The same keys, a group of one bucket after the other; what fills no group waits for another epoch."""
        waiting: dict[int, list[Key]] = collections.defaultdict(list)
        for key in keys:
            group = waiting[buckets[key[1]]]
            group.append(key)
            if len(group) == self.group:
                yield from group
                group.clear()


def epoch_order(clips: Sequence[Clip], *, seed: int, epoch: int, source: int = 0) -> np.ndarray:
    """A permutation of the clips' indices.

    Clips of a shard stay together, shards and the clips within each in random order, so that shards are read one
    after the other.
    """
    rng = np.random.default_rng([seed, epoch, source] if source else [seed, epoch])
    order = rng.permutation(len(clips))
    _, shard = np.unique([clip.shard or "" for clip in clips], return_inverse=True)
    shard_position = rng.permutation(shard.max() + 1)[shard]
    return order[np.argsort(shard_position[order], kind="stable")]
