"""The workers there are: who is warm, who was heard of lately, and what a video costs them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Row, bindparam, delete, func, insert, select, update

from .admission import WORKER_SILENT
from .database import NOW, Database
from .tables import videos, workers

FORGET_SECONDS = 3600  # after which a silent worker is no more in the table


@dataclass
class WorkerState:
    """What a worker tells about itself with every beat."""

    id: str
    model: str
    device: str
    host: str
    pid: int
    ready: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    stats: dict[str, Any] = field(default_factory=dict)


class Registry:
    """The table `workers`.

    Args:
        database: of the tables.
        assumed_seconds: what a video is taken to cost where none was measured.
    """

    def __init__(self, database: Database, *, assumed_seconds: float = 10):
        self.database, self.assumed_seconds = database, assumed_seconds

    def beat(self, state: WorkerState) -> None:
        """Says that a worker lives, and what it has learnt."""
        values = dict(state.__dict__)
        with self.database.write() as connection:
            known = update(workers).where(workers.c.id == state.id).values(**values, seen=NOW)
            if not connection.execute(known).rowcount:
                connection.execute(insert(workers).values(**values, seen=NOW, started=NOW))
            connection.execute(delete(workers).where(workers.c.seen < NOW - FORGET_SECONDS))

    def leave(self, id: str) -> None:
        """A worker is no more."""
        with self.database.write() as connection:
            connection.execute(delete(workers).where(workers.c.id == id))

    def alive(self, model: str | None = None) -> list[Row]:
        """The workers heard of lately, of one model or of all."""
        heard = _HEARD if model is None else _HEARD_OF_A_MODEL
        with self.database.read() as connection:
            return list(connection.execute(heard, {"model": model}))

    def is_ready(self, model: str) -> bool:
        """Whether a warm worker of the model lives."""
        return any(row.ready for row in self.alive(model))

    def cost(self, model: str, bucket: str) -> float:
        """Seconds that a video of a bucket is expected to take a worker."""
        measured = [row.seconds[bucket] for row in self.alive(model) if bucket in row.seconds]
        return sum(measured) / len(measured) if measured else self.assumed_seconds

    def queue_figures(self) -> list[Row]:
        """By model and bucket: `queued`, `running`, age of the `oldest` queued one, `seconds` of work queued."""
        is_queued = videos.c.state == "queued"
        figures = select(
            videos.c.model,
            videos.c.bucket,
            func.count().filter(is_queued).label("queued"),
            func.count().filter(~is_queued).label("running"),
            (NOW - func.min(videos.c.created).filter(is_queued)).label("oldest"),
            func.coalesce(func.sum(videos.c.cost).filter(is_queued), 0.0).label("seconds"),
        ).where(videos.c.state.in_(("queued", "in_progress")))
        with self.database.read() as connection:
            return list(connection.execute(figures.group_by(videos.c.model, videos.c.bucket)))


# Asked with every submit, so built once.
_HEARD = select(workers).where(workers.c.seen > NOW - WORKER_SILENT).order_by(workers.c.id)
_HEARD_OF_A_MODEL = _HEARD.where(workers.c.model == bindparam("model"))
