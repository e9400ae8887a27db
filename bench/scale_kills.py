"""Jobs on PostgreSQL while workers are killed, the database crashes and a server dies: what becomes of them."""

from __future__ import annotations

import argparse
import multiprocessing
import random
import signal
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from server_process import ServerProcess, submit
from services import Postgres
from serving_bench import fake_state, put_job
from sqlalchemy import func, select, text
from sqlalchemy.exc import SQLAlchemyError

from videomaker.serve.database import wait_out
from videomaker.serve.housekeeping import Housekeeper
from videomaker.serve.loading import load_renderer
from videomaker.serve.state import State
from videomaker.serve.tables import videos
from videomaker.serve.worker import Worker

LEASE = 5  # seconds
AWAY_SECONDS = 3  # of the database, at each restart
VIA_SERVER = 20  # jobs that go through the server that is killed
PATIENCE = 120  # seconds for which a question to the database is asked again
# Written by the database itself each time that a video is completed: what a second result could not hide from.
COUNT_ENDS = (
    "CREATE TABLE ends (id TEXT)",
    "CREATE FUNCTION count_end() RETURNS trigger LANGUAGE plpgsql AS "
    "'BEGIN INSERT INTO ends VALUES (NEW.id); RETURN NEW; END'",
    "CREATE TRIGGER count_ends AFTER UPDATE OF state ON videos FOR EACH ROW WHEN (NEW.state = 'completed') "
    "EXECUTE FUNCTION count_end()",
)


def kills(options: argparse.Namespace) -> dict[str, Any]:
    """None lost, none with two results, whatever is killed."""
    with tempfile.TemporaryDirectory(prefix="videomaker-bench-") as name, Postgres(Path(name) / "pg") as server:
        folder, url = Path(name), server.create()
        state = _state(folder, url)
        with state.database.write() as connection:
            for statement in COUNT_ENDS:
                connection.execute(text(statement))
        ids = _through_a_server_that_dies(folder, url)
        pool = _Pool(folder, url, options.workers)
        housekeeper, submitter = Housekeeper(state), _Submitter(state, options.jobs - len(ids))
        housekeeper.start()
        submitter.start()
        start = time.monotonic()
        try:
            killed, restarts = _kill_until_done(state, pool, server, submitter, options)
            seconds = time.monotonic() - start
        finally:
            pool.stop()
            housekeeper.stop()
        figures = {"seconds": round(seconds, 1), "workers_killed": killed, "database_crashes": restarts,
                   "servers_killed": 1, "jobs_per_s": round(options.jobs / seconds, 1)}  # fmt: skip
        return {**_verdict(state, {*ids, *submitter.ids}, options.jobs), **figures}


def _state(folder: Path, url: str) -> State:
    return fake_state(folder, database=url, lease_seconds=LEASE, batch=8, batch_wait=0)


def _through_a_server_that_dies(folder: Path, url: str) -> list[str]:
    settings = {"database": url, "files": folder / "files", "max_wait": 1e9, "max_active": 10**6, "log_level": "error"}
    with ServerProcess(folder / "server", "--no-worker", **settings) as server, server.client() as client:
        fields = {"size": "16x16", "num_frames": "2", "num_inference_steps": "2"}
        ids = [submit(client, seed=str(seed), **fields).json()["id"] for seed in range(VIA_SERVER)]
        server.stop(signal.SIGKILL)
    return ids


def _work(folder: Path, url: str) -> None:
    state = _state(folder, url)
    Worker(state, load_renderer(state.config, "cpu")).run()


class _Pool:
    """Worker processes, each replaced when it dies; forked from a process that has everything loaded."""

    def __init__(self, folder: Path, url: str, workers: int):
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["videomaker.serve.worker", "videomaker.serve.fake", "psycopg"])
        self._arguments = folder, url
        self._processes = [self._start() for _ in range(workers)]

    def _start(self) -> multiprocessing.process.BaseProcess:
        process = self._context.Process(target=_work, args=self._arguments, daemon=True)
        process.start()
        return process

    def kill_one(self, chance: random.Random) -> None:
        """Any of them, with -9."""
        chance.choice(self._processes).kill()

    def replace(self) -> None:
        """New ones for the dead."""
        self._processes = [process if process.is_alive() else self._start() for process in self._processes]

    def stop(self) -> None:
        """Kills them all."""
        for process in self._processes:
            process.kill()
            process.join()


class _Submitter(threading.Thread):
    """Puts jobs into the queue while the workers work, through every crash of the database."""

    def __init__(self, state: State, count: int):
        super().__init__(daemon=True)
        self.state, self.count = state, count
        self.ids: set[str] = set()

    def run(self) -> None:
        """Until all are in. A try whose answer was lost may have made a job that nobody was told of."""
        for seed in range(self.count):
            self.ids.add(wait_out(lambda seed=seed: put_job(self.state, seed), PATIENCE))


def _kill_until_done(
    state: State, pool: _Pool, server: Postgres, submitter: _Submitter, options: argparse.Namespace
) -> tuple[int, int]:
    chance, killed, restarts = random.Random(options.seed), 0, 0
    next_kill = next_told = time.monotonic() + options.kill_every
    while submitter.is_alive() or (left := _unfinished(state)):
        pool.replace()
        now = time.monotonic()
        if now > next_kill:
            pool.kill_one(chance)
            killed, next_kill = killed + 1, now + options.kill_every
        done = _count(state, videos.c.state == "completed")
        if restarts < options.restarts and done > options.jobs * (restarts + 1) / (options.restarts + 1):
            server.stop(crash=True)
            time.sleep(AWAY_SECONDS)
            server.start()
            restarts += 1
        if now > next_told:
            left, next_told = _unfinished(state), now + 20
            print(f"{len(submitter.ids)} accepted, {left} left, {killed} kills", file=sys.stderr)
        time.sleep(0.2)
    return killed, restarts


def _unfinished(state: State) -> int:
    return _count(state, videos.c.state.in_(("queued", "in_progress")))


def _count(state: State, what: Any) -> int:
    def ask() -> int:
        with state.database.read() as connection:
            return connection.scalar(select(func.count()).select_from(videos).where(what))

    return wait_out(ask, PATIENCE)


def _verdict(state: State, ids: set[str], wanted: int) -> dict[str, Any]:
    with state.database.read() as connection:
        rows = connection.execute(select(videos.c.id, videos.c.state, videos.c.attempt, videos.c.result)).all()
        twice = "SELECT count(*) FROM (SELECT id FROM ends GROUP BY id HAVING count(*) > 1) AS more"
        doubled = connection.scalar(text(twice))
    done = {row.id for row in rows if row.state == "completed"}
    named = {file["key"] for row in rows if row.result for file in row.result["files"].values()}
    missing = len(named - set(state.store.keys("videos")))
    verdict = {
        "jobs": len(ids), "completed": len(done & ids), "lost": len(ids - done), "with_two_results": doubled,
        "run_more_than_once": sum(row.attempt > 1 for row in rows), "files_missing": missing,
    }  # fmt: skip
    kept = len(ids) == wanted and not (verdict["lost"] or doubled or missing)
    with suppress(SQLAlchemyError):
        state.database.close()
    return {**verdict, "kept": kept}
