"""What is shown of jobs: one, a page of an owner's, how long each still takes; and removal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, and_, bindparam, delete, func, or_, select, true, tuple_

from .admission import WORKER_SILENT, warm_workers
from .database import NOW, Database
from .tables import videos, workers


@dataclass(frozen=True)
class Wait:
    """Jobs that go first, and the seconds until this one is done, as expected."""

    position: int
    eta: float


class Listing:
    """Reading the table `videos`."""

    def __init__(self, database: Database):
        self.database = database

    def get(self, id: str, owner: str | None = None) -> Row | None:
        """A job, if it is this owner's; `owner=None` does not ask."""
        one = _ONE if owner is None else _ONE_OF_AN_OWNER
        with self.database.read() as connection:
            return connection.execute(one, {"id": id, "owner": owner}).first()

    def get_many(self, ids: Iterable[str]) -> dict[str, Row]:
        """Jobs by id; those that are gone are left out."""
        with self.database.read() as connection:
            return {row.id: row for row in connection.execute(select(videos).where(videos.c.id.in_(list(ids))))}

    def page(self, owner: str, *, limit: int, after: str | None, newest_first: bool) -> tuple[list[Row], bool]:
        """Up to `limit` of an owner's jobs after the job `after`, and whether there are more.

        Raises:
            KeyError: the owner has no job `after`.
        """
        mine = [videos.c.owner == owner]
        created, id = videos.c.created, videos.c.id
        with self.database.read() as connection:
            if after is not None:
                last = connection.execute(select(created, id).where(id == after, *mine)).first()
                if last is None:
                    raise KeyError(after)
                beyond = created < last.created if newest_first else created > last.created
                tie = id < last.id if newest_first else id > last.id
                mine.append(or_(beyond, and_(created == last.created, tie)))
            order = (created.desc(), id.desc()) if newest_first else (created, id)
            rows = connection.execute(select(videos).where(*mine).order_by(*order).limit(limit + 1)).all()
        return list(rows[:limit]), len(rows) > limit

    def waits(self, rows: Iterable[Row]) -> dict[str, Wait]:
        """For those of the jobs that wait or run: how long.

        For one job what is before it is counted; for more the queue is scanned once, whatever their number.
        """
        running = [row for row in rows if row.state == "in_progress"]
        queued = {row.id: row for row in rows if row.state == "queued"}
        waits = {row.id: Wait(0, row.cost * (1 - row.step / max(1, row.steps))) for row in running}
        if len(queued) < 2:
            return waits | {job.id: self._wait(job) for job in queued.values()}
        order: dict[str, Any] = {"partition_by": videos.c.model, "order_by": (videos.c.priority, videos.c.created)}
        ranked = select(
            videos.c.id,
            (func.row_number().over(**order) - 1).label("position"),
            func.sum(videos.c.cost).over(**order).label("seconds"),
        )
        places = ranked.where(videos.c.state == "queued").subquery()
        with self.database.read() as connection:
            alive = self._alive(connection)
            for row in connection.execute(select(places).where(places.c.id.in_(queued))):
                job = queued[row.id]
                eta = (row.seconds - job.cost) / max(1, alive.get(job.model, 0)) + job.cost
                waits[row.id] = Wait(row.position, eta)
        return waits

    def _wait(self, job: Row) -> Wait:
        with self.database.read() as connection:
            place = {"model": job.model, "priority": job.priority, "created": job.created}
            ahead = connection.execute(_AHEAD, place).one()
        return Wait(ahead.position, ahead.seconds / max(1, ahead.warm) + job.cost)

    def _alive(self, connection: Any) -> dict[str, int]:
        heard = workers.c.seen > NOW - WORKER_SILENT
        counts = select(workers.c.model, func.count()).where(workers.c.ready, heard).group_by(workers.c.model)
        return {model: count for model, count in connection.execute(counts)}

    def remove(self, id: str, owner: str | None = None) -> bool:
        """Removes a job in any state; a worker that makes it finds its lease gone and throws its files away."""
        mine = true() if owner is None else videos.c.owner == owner
        with self.database.write() as connection:
            return bool(connection.execute(delete(videos).where(videos.c.id == id, mine)).rowcount)

    def expired(self, limit: int = 200) -> list[str]:
        """Ended jobs whose time is over."""
        over = select(videos.c.id).where(videos.c.expires < NOW).order_by(videos.c.expires)
        with self.database.read() as connection:
            return list(connection.scalars(over.limit(limit)))

    def known(self, ids: Iterable[str]) -> set[str]:
        """Those of the ids that have a row."""
        with self.database.read() as connection:
            return set(connection.scalars(select(videos.c.id).where(videos.c.id.in_(list(ids)))))


# What every look at a job asks, built once.
_ONE = select(videos).where(videos.c.id == bindparam("id"))
_ONE_OF_AN_OWNER = _ONE.where(videos.c.owner == bindparam("owner"))
_AHEAD = select(
    func.count().label("position"),
    func.coalesce(func.sum(videos.c.cost), 0.0).label("seconds"),
    warm_workers().label("warm"),
).where(
    videos.c.state == "queued",
    videos.c.model == bindparam("model"),
    tuple_(videos.c.priority, videos.c.created) < tuple_(bindparam("priority"), bindparam("created")),
)
