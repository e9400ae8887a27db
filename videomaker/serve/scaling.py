"""How many workers a queue wants: what Ray Serve's controller asks, also while there is none."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import structlog
from sqlalchemy.exc import SQLAlchemyError

from videomaker.errors import first_line

from .config import load_config
from .state import State

log = structlog.get_logger("videomaker.serve.scaling")
LOOK_SECONDS = 2


@dataclass(frozen=True)
class Load:
    """Of one bucket: `queued` jobs, their `seconds` of work as expected, and `running` jobs."""

    queued: int
    running: int
    seconds: float


def wanted_workers(buckets: Iterable[Load], *, batch: int, target_seconds: float) -> int:
    """Workers that would have the queue empty in a while, and all those that are at work.

    Args:
        buckets: of one model; a pass holds jobs of one of them.
        batch: jobs that share a pass.
        target_seconds: how long what waits now may take, start-up of a worker not counted.
    """
    buckets = list(buckets)
    busy = sum(math.ceil(load.running / batch) for load in buckets)
    passes = sum(math.ceil(load.queued / batch) for load in buckets)
    seconds = sum(load.seconds for load in buckets)
    # No more than there are passes: a job cannot be split.
    return busy + min(passes, math.ceil(seconds / target_seconds))


class Context(Protocol):
    """What Ray tells a policy, as far as this one asks."""

    target_num_replicas: int
    capacity_adjusted_min_replicas: int
    capacity_adjusted_max_replicas: int


class QueuedSeconds:
    """An autoscaling policy of Ray Serve over the database's queue.

    The controller's loop must not wait for a database, so a thread looks, and the policy tells what it saw last.

    Args:
        config: settings of the server (`database`, `batch`, and the model, or `only` one of its `models`).
        target_seconds: see `wanted_workers`.
    """

    def __init__(self, config: dict[str, Any], target_seconds: float = 60):
        self._state = State(load_config(**config).served_here[0])
        self._target_seconds = target_seconds
        self._wanted: int | None = None
        threading.Thread(target=self._look, name="queued-seconds", daemon=True).start()

    def __call__(self, context: Context) -> tuple[int, dict[str, Any]]:
        """Replicas that there should be, within the deployment's bounds; unchanged while the database is away."""
        wanted = context.target_num_replicas if self._wanted is None else self._wanted
        least, most = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
        return max(least, min(most, wanted)), {}

    def look(self) -> None:
        """Asks the database once."""
        name = self._state.config.name
        rows = [row for row in self._state.registry.queue_figures() if row.model == name]
        loads = [Load(row.queued, row.running, row.seconds) for row in rows]
        self._wanted = wanted_workers(loads, batch=self._state.config.batch, target_seconds=self._target_seconds)

    def _look(self) -> None:
        while True:
            try:
                self.look()
            except SQLAlchemyError as error:
                log.warning("queue not seen", error=first_line(error))
            time.sleep(LOOK_SECONDS)
