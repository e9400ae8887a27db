"""The queue: jobs are rows of `videos`, taken by lease. At least one run of each, exactly one result.

A claim gives its jobs a new fencing token (`lease`); whoever holds an old one can neither renew nor finish. A worker
that renews no longer loses its lease to `reap`, which queues the job again or, after too many attempts, fails it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, bindparam, insert, select, text, update

from .admission import NO_LIMITS, Limits, check_room
from .database import NOW, Database
from .tables import videos

REAP_LIMIT = 1000  # jobs at once
MERGE_SECONDS = 120  # the official client has given up on its retries by then
CANCELLED = {"code": "cancelled", "message": "the video was cancelled"}
WORKER_LOST = {"code": "worker_lost", "message": "the worker that made the video died, more than once"}


class KeyReused(Exception):
    """The idempotency key belongs to another request."""


@dataclass(frozen=True)
class NewJob:
    """A job to accept; the fields are those of the table `videos`."""

    id: str
    owner: str
    model: str
    bucket: str
    steps: int
    cost: float
    request: dict[str, Any]
    fingerprint: str
    priority: int = 0
    idempotency_key: str | None = None
    client_retry: int = 0
    request_id: str | None = None
    traceparent: str | None = None


@dataclass(frozen=True)
class Claimed:
    """Jobs of one bucket that a worker holds under one lease."""

    lease: str
    rows: list[Any]


@dataclass(frozen=True)
class Renewed:
    """What is left of a lease: jobs still held, and those of them whose owner wants them no more."""

    held: frozenset[str]
    cancelled: frozenset[str]


class Queue:
    """Durable jobs on a database; every method is one transaction.

    Args:
        database: of the tables.
        lease_seconds: how long a worker may be silent.
        max_attempts: runs of a job whose worker was lost.
        keep_seconds: for which a job that has ended, however it ended, is kept; None: for good.
    """

    def __init__(
        self,
        database: Database,
        *,
        lease_seconds: float = 30,
        max_attempts: int = 3,
        keep_seconds: float | None = None,
    ):
        self.database = database
        self.lease_seconds, self.max_attempts = lease_seconds, max_attempts
        expires = None if keep_seconds is None else NOW + keep_seconds
        self._end = {"finished": NOW, "lease": None, "lease_until": None, "expires": expires}

    def submit(self, job: NewJob, limits: Limits = NO_LIMITS) -> tuple[str, bool]:
        """Accepts a job, or finds the one that the same request made before: its id, and whether it is new.

        Raises:
            KeyReused: the idempotency key belongs to another request.
            Refused: too much is waiting.
        """
        with self.database.write() as connection:
            if not self.database.is_sqlite:  # two submits of one owner, on two replicas, go one after the other
                connection.execute(_ONE_BY_ONE, {"owner": job.owner})
            if connection.scalar(_SAME_ID, {"id": job.id}):
                return job.id, True  # an earlier try whose answer was lost
            if twin := self._twin(connection, job, limits):
                return twin, False
            check_room(connection, job.owner, job.model, job.cost, limits)
            connection.execute(_ADD, job.__dict__)
        return job.id, True

    def _twin(self, connection: Connection, job: NewJob, limits: Limits) -> str | None:
        if job.idempotency_key is not None:
            row = connection.execute(_BY_KEY, {"owner": job.owner, "key": job.idempotency_key}).first()
            if row and row.fingerprint != job.fingerprint:
                raise KeyReused(job.idempotency_key)
            return row and row.id
        if not limits.merge_retries:
            return None
        # A retry finds the first try's job; a first try that comes in late finds its retry's.
        pair = _ANY_TRY if job.client_retry else _RETRY
        return connection.scalar(pair, {"owner": job.owner, "fingerprint": job.fingerprint})

    def claim(
        self, worker: str, model: str, batch: Callable[[str], int] = lambda _: 1, wait: float = 0
    ) -> Claimed | None:
        """Takes the oldest job of a model and, up to the batch of its bucket, others of that bucket.

        Args:
            worker: who asks.
            model: of the jobs.
            batch: how many jobs of a bucket go at once.
            wait: seconds for which the oldest job waits for others before an unfilled batch goes.
        """
        waiting = videos.c.state == "queued", videos.c.model == model
        with self.database.read() as connection:  # an idle worker takes no lock
            if connection.scalar(select(videos.c.id).where(*waiting).limit(1)) is None:
                return None
        columns = select(videos, (NOW - videos.c.created).label("age")).where(*waiting)
        columns = columns.order_by(videos.c.priority, videos.c.created).with_for_update(skip_locked=True)
        with self.database.write() as connection:
            first = connection.execute(columns.limit(1)).first()
            if first is None:
                return None
            rows = [first]
            size = batch(first.bucket)
            if size > 1 and first.attempt == 0:  # what took a worker down before runs alone
                like = videos.c.bucket == first.bucket, videos.c.attempt == 0, videos.c.id != first.id
                rows += connection.execute(columns.where(*like).limit(size - 1)).all()
                if len(rows) < size and first.age < wait:
                    return None
            lease = uuid.uuid4().hex
            taken = {"state": "in_progress", "lease": lease, "worker": worker, "step": 0, "started": NOW}
            until = NOW + self.lease_seconds
            mine = update(videos).where(videos.c.id.in_([row.id for row in rows]))
            connection.execute(mine.values(**taken, lease_until=until, attempt=videos.c.attempt + 1))
        return Claimed(lease, rows)

    def renew(self, lease: str, step: int) -> Renewed:
        """Keeps a lease for another while and tells how far its jobs are."""
        values = {"lease_until": NOW + self.lease_seconds, "step": step}
        statement = _held(lease).values(values).returning(videos.c.id, videos.c.cancel_requested)
        with self.database.write() as connection:
            rows = connection.execute(statement).all()
        return Renewed(frozenset(r.id for r in rows), frozenset(r.id for r in rows if r.cancel_requested))

    def finish(self, lease: str, id: str, *, result: dict | None = None, error: dict | None = None) -> bool:
        """Records what became of a job, once: whether `result` counts (the lease was still held, nobody cancelled).

        Args:
            lease, id: of the claim.
            result: of a video that was made.
            error: `code` and `message` of one that was not.
        """
        job = _held(lease).where(videos.c.id == id)
        with self.database.write() as connection:
            if error is None:
                done = {**self._end, "state": "completed", "result": result, "step": videos.c.steps}
                if connection.execute(job.where(~videos.c.cancel_requested).values(done)).rowcount:
                    return True
                if connection.scalar(select(videos.c.result).where(videos.c.id == id).where(_is_by(lease))):
                    return True  # an earlier call whose answer was lost
                error = CANCELLED
            connection.execute(job.values(self._failed(error)))
        return False

    def release(self, lease: str) -> None:
        """Gives jobs back as if they had not been taken: for a worker that is told to stop."""
        with self.database.write() as connection:
            wanted = _held(lease).where(~videos.c.cancel_requested)
            connection.execute(wanted.values({**_AGAIN, "attempt": videos.c.attempt - 1}))
            connection.execute(_held(lease).values(self._failed(CANCELLED)))

    def cancel(self, owner: str, id: str) -> bool:
        """Ends a queued job now and a running one at its next step; False when there is none left to end."""
        own = update(videos).where(videos.c.id == id, videos.c.owner == owner)
        with self.database.write() as connection:
            queued = own.where(videos.c.state == "queued").values(self._failed(CANCELLED))
            running = own.where(videos.c.state == "in_progress").values(cancel_requested=True)
            return bool(connection.execute(queued).rowcount or connection.execute(running).rowcount)

    def reap(self) -> int:
        """Takes jobs from workers that have fallen silent: how many."""
        over = videos.c.state == "in_progress", videos.c.lease_until < NOW
        with self.database.write() as connection:
            # Replicas that reap at once each take what no other has: they would wait for one another for nothing.
            free = select(videos.c.id).where(*over).limit(REAP_LIMIT).with_for_update(skip_locked=True)
            ids = connection.scalars(free).all()
            if not ids:
                return 0
            lost = update(videos).where(videos.c.id.in_(ids), videos.c.state == "in_progress")
            spent = lost.where(videos.c.attempt >= self.max_attempts)
            ends = (
                lost.where(videos.c.cancel_requested).values(self._failed(CANCELLED)),
                spent.values(self._failed(WORKER_LOST)),
                lost.values(_AGAIN),
            )
            return sum(connection.execute(end).rowcount for end in ends)

    def _failed(self, error: dict[str, str]) -> dict[str, Any]:
        return {**self._end, "state": "failed", "error": error}


# What every submit asks is built once: building a statement costs as much as running it.
_ONE_BY_ONE = text("SELECT pg_advisory_xact_lock(hashtextextended(:owner, 0))")
_SAME_ID = select(videos.c.id).where(videos.c.id == bindparam("id"))
_ADD = insert(videos).values(state="queued", created=NOW)
_OWN = videos.c.owner == bindparam("owner")
_BY_KEY = select(videos.c.id, videos.c.fingerprint).where(_OWN, videos.c.idempotency_key == bindparam("key"))
_ANY_TRY = (
    select(videos.c.id)
    .where(_OWN, videos.c.fingerprint == bindparam("fingerprint"), videos.c.idempotency_key.is_(None))
    .where(videos.c.created > NOW - MERGE_SECONDS)
    .order_by(videos.c.created)
    .limit(1)
)
_RETRY = _ANY_TRY.where(videos.c.client_retry > 0)

_AGAIN = {"state": "queued", "lease": None, "lease_until": None, "worker": None, "started": None, "step": 0}


def _held(lease: str):
    return update(videos).where(videos.c.lease == lease, videos.c.state == "in_progress")


def _is_by(lease: str) -> ColumnElement[bool]:
    return videos.c.result["lease"].as_string() == lease
