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
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from server_process import ServerProcess, submit
from services import PgBouncer, Postgres
from serving_bench import fake_state, put_job
from sqlalchemy import func, select, text
from sqlalchemy.exc import SQLAlchemyError

from videomaker.serve.admission import NO_LIMITS, Limits, Refused
from videomaker.serve.database import wait_out
from videomaker.serve.housekeeping import Housekeeper
from videomaker.serve.keys import LOCAL
from videomaker.serve.loading import load_renderer
from videomaker.serve.state import State
from videomaker.serve.tables import videos
from videomaker.serve.worker import Worker

LEASE = 5  # seconds
AWAY_SECONDS = 3  # of the database, at each restart
VIA_SERVER = 20  # jobs that go through the server that is killed
PATIENCE = 120  # seconds for which a question to the database is asked again
KEY, KEY_LIMIT, KEY_SHARE = "limited", 10, 20  # an owner that may have so many unfinished; its part of jobs, twice 1/20
# Written by the database itself: each completion, from which a second result could not hide, and at each job of the
# limited owner how many unfinished ones it has.
WITNESSES = (
    "CREATE TABLE ends (id TEXT)",
    "CREATE FUNCTION count_end() RETURNS trigger LANGUAGE plpgsql AS "
    "'BEGIN INSERT INTO ends VALUES (NEW.id); RETURN NEW; END'",
    "CREATE TRIGGER count_ends AFTER UPDATE OF state ON videos FOR EACH ROW WHEN (NEW.state = 'completed') "
    "EXECUTE FUNCTION count_end()",
    "CREATE TABLE active (videos INTEGER)",
    "CREATE FUNCTION count_active() RETURNS trigger LANGUAGE plpgsql AS "
    "'BEGIN INSERT INTO active SELECT count(*) FROM videos WHERE owner = NEW.owner "
    "AND state IN (''queued'', ''in_progress''); RETURN NEW; END'",
    f"CREATE TRIGGER count_active AFTER INSERT ON videos FOR EACH ROW WHEN (NEW.owner = '{KEY}') "
    "EXECUTE FUNCTION count_active()",
)


def kills(options: argparse.Namespace) -> dict[str, Any]:
    """None lost, none with two results, no owner over its limit, whatever is killed."""
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="videomaker-bench-")))
        server = opened.enter_context(Postgres(folder / "pg"))
        url = server.create()
        if options.pgbouncer:
            url = opened.enter_context(PgBouncer(server, folder / "pgbouncer")).through(url)
        state = _state(folder, url)
        with state.database.write() as connection:
            for statement in WITNESSES:
                connection.execute(text(statement))
        pool = _Pool(folder, url, options.workers)
        housekeeper = Housekeeper(state)
        submitters = [_ServerThatDies(folder, url), *_submitters(state, options.jobs - VIA_SERVER)]
        housekeeper.start()
        for submitter in submitters:
            submitter.start()
        start = time.monotonic()
        try:
            killed, restarts = _kill_until_done(state, pool, server, submitters, options)
            seconds = time.monotonic() - start
        finally:
            pool.stop()
            housekeeper.stop()
        figures = {"pgbouncer": options.pgbouncer, "seconds": round(seconds, 1), "workers_killed": killed,
                   "database_crashes": restarts, "servers_killed": 1,
                   "jobs_per_s": round(options.jobs / seconds, 1)}  # fmt: skip
        return {**_verdict(state, _accepted(submitters), options.jobs), **figures}


def _state(folder: Path, url: str) -> State:
    return fake_state(folder, database=url, lease_seconds=LEASE, batch=8, batch_wait=0)


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

    def __init__(self, state: State, count: int, owner: str = LOCAL.id, limits: Limits = NO_LIMITS):
        super().__init__(daemon=True)
        self.state, self.count, self.owner, self.limits = state, count, owner, limits
        self.ids: set[str] = set()

    def run(self) -> None:
        """Until all are in. A try whose answer was lost may have made a job that nobody was told of."""
        for seed in range(self.count):
            self.ids.add(wait_out(lambda seed=seed: self._put(seed), PATIENCE))

    def _put(self, seed: int) -> str:
        while True:
            try:
                return put_job(self.state, seed, self.owner, self.limits)
            except Refused:
                time.sleep(0.1)


class _ServerThatDies(threading.Thread):
    """Jobs that come through a server, which is then killed."""

    def __init__(self, folder: Path, url: str):
        super().__init__(daemon=True)
        self.folder, self.url = folder, url
        self.ids: set[str] = set()

    def run(self) -> None:
        """Until the server is dead."""
        free = {"max_wait": 1e9, "max_active": 10**6, "log_level": "error"}
        settings = {"database": self.url, "files": self.folder / "files", **free}
        fields = {"size": "16x16", "num_frames": "2", "num_inference_steps": "2"}
        with ServerProcess(self.folder / "server", "--no-worker", **settings) as server, server.client() as client:
            while len(self.ids) < VIA_SERVER:
                answer = submit(client, seed=str(len(self.ids)), **fields)
                if answer.status_code == 200:  # or the database is away
                    self.ids.add(answer.json()["id"])
            server.stop(signal.SIGKILL)


def _submitters(state: State, count: int) -> list[_Submitter]:
    """One without limits, and two at once of one owner, as two servers would be."""
    share = count // KEY_SHARE
    limited = [_Submitter(state, share, KEY, Limits(max_active=KEY_LIMIT)) for _ in range(2)]
    return [_Submitter(state, count - 2 * share), *limited]


def _accepted(submitters: Sequence[Any]) -> set[str]:
    return {id for submitter in submitters for id in submitter.ids}


def _kill_until_done(
    state: State, pool: _Pool, server: Postgres, submitters: Sequence[Any], options: argparse.Namespace
) -> tuple[int, int]:
    chance, killed, restarts = random.Random(options.seed), 0, 0
    next_kill = next_told = time.monotonic() + options.kill_every
    while any(submitter.is_alive() for submitter in submitters) or (left := _unfinished(state)):
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
            print(f"{len(_accepted(submitters))} accepted, {left} left, {killed} kills", file=sys.stderr)
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
        most = connection.scalar(text("SELECT coalesce(max(videos), 0) FROM active"))
    done = {row.id for row in rows if row.state == "completed"}
    named = {file["key"] for row in rows if row.result for file in row.result["files"].values()}
    missing = len(named - set(state.store.keys("videos")))
    verdict = {
        "jobs": len(ids), "completed": len(done & ids), "lost": len(ids - done), "with_two_results": doubled,
        "run_more_than_once": sum(row.attempt > 1 for row in rows), "files_missing": missing,
        "limit_of_a_key": KEY_LIMIT, "most_unfinished_of_it": most,
    }  # fmt: skip
    kept = len(ids) == wanted and not (verdict["lost"] or doubled or missing) and most <= KEY_LIMIT
    with suppress(SQLAlchemyError):
        state.database.close()
    return {**verdict, "kept": kept}
