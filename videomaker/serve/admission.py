"""Back-pressure: whether there is room for another job, asked inside the transaction that accepts it."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, Select, func, select

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


def check_room(connection: Connection, now: ColumnElement, owner: str, model: str, cost: float, limits: Limits) -> None:
    """Refuses a job for which there is no room.

    Args:
        connection: in the transaction.
        now: the database's clock.
        owner, model, cost: of the job.
        limits: that hold for it.

    Raises:
        Refused: with the time after which to ask again.
    """
    own, active = videos.c.owner == owner, videos.c.state.in_(("queued", "in_progress"))
    count = select(func.count()).select_from(videos)
    if limits.max_active is not None and _number(connection, count.where(own, active)) >= limits.max_active:
        raise Refused(f"{limits.max_active} videos of yours wait or run; wait for one to end", cost)
    hour = videos.c.created > now - 3600
    if limits.max_per_hour is not None and _number(connection, count.where(own, hour)) >= limits.max_per_hour:
        first = _number(connection, select(now - func.min(videos.c.created)).where(own, hour))
        raise Refused(f"{limits.max_per_hour} videos an hour are the limit of this key", 3600 - first)
    if limits.max_wait == float("inf"):
        return
    if (wait := expected_wait(connection, now, model)) > limits.max_wait:
        reason = f"about {wait:.0f} s of work wait, more than {limits.max_wait:.0f} s; try again later"
        raise Refused(reason, wait - limits.max_wait)


def expected_wait(connection: Connection, now: ColumnElement, model: str) -> float:
    """Seconds until a new job of a model would start: what is queued, shared by its warm workers."""
    waiting = videos.c.state == "queued", videos.c.model == model
    seconds = _number(connection, select(func.sum(videos.c.cost)).where(*waiting))
    warm = workers.c.model == model, workers.c.ready, workers.c.seen > now - WORKER_SILENT
    return seconds / max(1, _number(connection, select(func.count()).select_from(workers).where(*warm)))


def _number(connection: Connection, query: Select) -> float:
    """The one number that a query finds; 0 for the sum of nothing."""
    return float(connection.scalar(query) or 0)
