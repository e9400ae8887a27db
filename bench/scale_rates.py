"""Claims and submits a second against the number of processes, on SQLite and PostgreSQL, durable commits on both."""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

from services import Postgres
from sqlalchemy import func, select

from videomaker.serve import migrate
from videomaker.serve.database import Database
from videomaker.serve.queue import NewJob, Queue
from videomaker.serve.tables import videos

STOCK = 3000  # jobs in the queue, at least, before claims are measured


def rates(options: argparse.Namespace) -> dict[str, Any]:
    """For each database and number of processes: transactions a second."""
    counts = [count for count in (1, 2, 4, 8, 16, 32) if count <= options.workers]
    measured: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="videomaker-bench-") as name:
        folder = Path(name)
        with Postgres(folder / "pg", durable=True) as server:
            urls = {"sqlite": f"sqlite:///{folder / 'q.db'}", "postgresql": server.create()}
            for kind, url in urls.items():
                migrate.upgrade(Database(url))
                measured[kind] = {
                    work.__name__: [_together(work, url, count, options.seconds) for count in counts]
                    for work in (submits, claims)
                }
    if options.output:
        _plot(measured, counts, options.output.with_suffix(".png"))
    return {"processes": counts, "per_second": measured}


def _together(work: Any, url: str, count: int, seconds: float) -> float:
    if work is claims:
        _fill_up(Database(url))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["scale_rates", "psycopg"])
    barrier, results = context.Barrier(count), context.SimpleQueue()
    arguments = (work.__name__, url, seconds, barrier, results)
    processes = [context.Process(target=_run, args=(*arguments, number)) for number in range(count)]
    for process in processes:
        process.start()
    done = sum(results.get() for _ in processes)
    for process in processes:
        process.join()
    return round(done / seconds, 1)


def _fill_up(database: Database) -> None:
    """What submits have left in the queue counts."""
    with database.read() as connection:
        there = connection.scalar(select(func.count()).select_from(videos).where(videos.c.state == "queued"))
    for _ in range(STOCK - there):
        Queue(database).submit(_job(f"stock-{time.time_ns()}", "stock"))
    database.close()


def _run(name: str, url: str, seconds: float, barrier: Any, results: Any, number: int) -> None:
    queue = Queue(Database(url))
    work = {"submits": submits, "claims": claims}[name]
    work(queue, number)  # connects
    barrier.wait()
    until, done = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        done += work(queue, number)
    results.put(done)


def _job(id: str, owner: str) -> NewJob:
    return NewJob(id, owner, "m", "b", 10, 1.0, {"prompt": "a creature"}, id)


def submits(queue: Queue, number: int) -> int:
    """One job accepted, each process for an owner of its own."""
    return int(queue.submit(_job(f"{number}-{time.time_ns()}", f"owner-{number}"))[1])


def claims(queue: Queue, number: int) -> int:
    """One job claimed and finished."""
    claimed = queue.claim(f"w{number}", "m")
    return 0 if claimed is None else int(queue.finish(claimed.lease, claimed.rows[0].id, result={}))


def _plot(measured: dict[str, dict[str, list[float]]], counts: list[int], path: Path) -> None:
    import matplotlib  # late: only where a picture is asked for

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for kind, works in measured.items():
        for work, values in works.items():
            axes.plot(counts, values, marker="o", label=f"{work}, {kind}", linestyle="-" if work == "claims" else "--")
    axes.set(xlabel="processes", ylabel="a second", xscale="log", ylim=(0, None))
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
