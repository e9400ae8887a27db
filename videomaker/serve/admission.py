"""Back-pressure: whether there is room for another job, asked inside the transaction that accepts it."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, ScalarSelect, bindparam, func, select

from .database import NOW
from .tables import videos, workers

WORKER_SILENT = 15  # seconds after which a worker counts for nothing


class Refused(Exception):
    """No room for another job now: `reason` for people, `retry_after` in seconds."""

    def __init__(self, reason: str, retry_after: float):
        super().__init__(reason)
        self.reason, self.retry_after = reason, retry_after


@dataclass(frozen=True)
class Limits:
    """What may wait.

    Args:
        max_wait: expected seconds, for anybody.
        max_active, max_per_hour: videos of one owner: unfinished ones, and those of the last hour.
        merge_retries: whether a client's own retry without a key finds the first try's job.
    """

    max_wait: float = float("inf")
    max_active: int | None = None
    max_per_hour: int | None = None
    merge_retries: bool = True


NO_LIMITS = Limits()


def check_room(connection: Connection, owner: str, model: str, cost: float, limits: Limits) -> None:
    """Refuses a job for which there is no room.

    Args:
        connection: in the transaction.
        owner, model, cost: of the job.
        limits: that hold for it.

    Raises:
        Refused: with the time after which to ask again.
    """
    if limits.max_active is not None and (connection.scalar(_ACTIVE, {"owner": owner}) or 0) >= limits.max_active:
        raise Refused(f"{limits.max_active} videos of yours wait or run; wait for one to end", cost)
    if limits.max_per_hour is not None:
        hour = connection.execute(_HOUR, {"owner": owner}).one()
        if hour.number >= limits.max_per_hour:
            raise Refused(f"{limits.max_per_hour} videos an hour are the limit of this key", 3600 - (hour.oldest or 0))
    if limits.max_wait == float("inf"):
        return
    if (wait := expected_wait(connection, model)) > limits.max_wait:
        reason = f"about {wait:.0f} s of work wait, more than {limits.max_wait:.0f} s; try again later"
        raise Refused(reason, wait - limits.max_wait)


def expected_wait(connection: Connection, model: str) -> float:
    """Seconds until a new job of a model would start: what is queued, shared by its warm workers."""
    load = connection.execute(_LOAD, {"model": model}).one()
    return load.seconds / max(1, load.warm)


def warm_workers() -> ScalarSelect[int]:
    """How many workers of the model `:model` are warm, as a part of a statement."""
    heard = workers.c.seen > NOW - WORKER_SILENT
    mine = workers.c.model == bindparam("model")
    return select(func.count()).select_from(workers).where(mine, workers.c.ready, heard).scalar_subquery()


# Built once: every submit runs them.
_OWN, _IS_ACTIVE = videos.c.owner == bindparam("owner"), videos.c.state.in_(("queued", "in_progress"))
_ACTIVE = select(func.count()).select_from(videos).where(_OWN, _IS_ACTIVE)
_HOUR = select(func.count().label("number"), (NOW - func.min(videos.c.created)).label("oldest")).where(
    _OWN, videos.c.created > NOW - 3600
)
_SECONDS = func.coalesce(func.sum(videos.c.cost), 0.0).label("seconds")
_LOAD = select(_SECONDS, warm_workers().label("warm")).where(
    videos.c.state == "queued", videos.c.model == bindparam("model")
)
