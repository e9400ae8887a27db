"""Workers and servers killed at work: what becomes of the jobs."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
from server_process import PICTURE, ServerProcess, submit, wait_for
from sqlalchemy import func, select, text

from videomaker.serve import migrate
from videomaker.serve.accept import Call, accept
from videomaker.serve.config import load_config
from videomaker.serve.housekeeping import Housekeeper
from videomaker.serve.keys import LOCAL
from videomaker.serve.loading import load_renderer
from videomaker.serve.logs import configure_logs
from videomaker.serve.models import Bucket
from videomaker.serve.queue import NewJob
from videomaker.serve.schema import VideoRequest
from videomaker.serve.state import State
from videomaker.serve.tables import videos
from videomaker.serve.worker import Worker

LEASE = 3  # seconds
# Written by the database itself each time that a video is completed: what a second result could not hide from.
COUNT_ENDS = (
    "CREATE TABLE ends (id TEXT)",
    "CREATE TRIGGER count_ends AFTER UPDATE OF state ON videos WHEN NEW.state = 'completed' "
    "BEGIN INSERT INTO ends VALUES (NEW.id); END",
)


def queue(options: argparse.Namespace) -> dict[str, Any]:
    """Many jobs; a worker is killed every few seconds, and once one is stopped past its lease and resumed."""
    with tempfile.TemporaryDirectory(prefix="videomaker-bench-") as folder:
        state = _state(Path(folder))
        migrate.upgrade(state.database)
        with state.database.write() as connection:
            for statement in COUNT_ENDS:
                connection.execute(text(statement))
        submitter, pool = _Submitter(state, options.jobs), _Pool(Path(folder), options.workers)
        start = time.monotonic()
        configure_logs(state.config)
        housekeeper = Housekeeper(state)
        housekeeper.start()
        submitter.start()
        try:
            kills = _kill_until_done(state, pool, submitter, options)
            seconds = time.monotonic() - start
        finally:
            pool.stop()
            housekeeper.stop()
        figures = {"seconds": round(seconds, 1), "kills": kills, "jobs_per_s": round(options.jobs / seconds, 1)}
        return {**_verdict(state, submitter.ids, options.jobs), **figures}


def _state(folder: Path) -> State:
    settings = {"renderer": "fake", "lease_seconds": LEASE, "batch": 8, "batch_wait": 0, "max_attempts": 50}
    return State(load_config(data=folder, max_wait=float("inf"), max_active=10**9, log_level="error", **settings))


class _Pool:
    """Worker processes, each replaced at once when it is killed.

    They are forked from a process that has everything loaded: on a busy machine a worker that starts from nothing
    would be killed before it has done much, and the test is of workers that hold jobs.
    """

    def __init__(self, folder: Path, workers: int):
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["videomaker.serve.worker", "videomaker.serve.fake"])
        self._folder = folder
        self._processes = [self._start() for _ in range(workers)]

    def _start(self) -> multiprocessing.process.BaseProcess:
        process = self._context.Process(target=_work, args=(self._folder,), daemon=True)
        process.start()
        return process

    def pids(self) -> list[int]:
        """Those that run, the dead replaced."""
        self._processes = [process if process.is_alive() else self._start() for process in self._processes]
        return [process.pid for process in self._processes]

    def stop(self) -> None:
        """Kills them all."""
        for process in self._processes:
            process.kill()
            process.join()


def _work(folder: Path) -> None:
    state = _state(folder)
    configure_logs(state.config)
    Worker(state, load_renderer(state.config, "cpu")).run()


class _Submitter(threading.Thread):
    """Puts jobs into the queue while the workers work; all show one stored picture."""

    def __init__(self, state: State, count: int):
        super().__init__(daemon=True)
        self.state, self.count = state, count
        self.ids: set[str] = set()

    def run(self) -> None:
        """Until all are in."""
        first, _ = accept(self.state, self._asked(0), [PICTURE.read_bytes()], Call(LOCAL, "bench"))
        self.ids.add(first)
        request = self.state.listing.get(first).request
        bucket = str(Bucket.of(request))
        for seed in range(1, self.count):
            id = f"{first}-{seed}"
            job = NewJob(id, LOCAL.id, request["model"], bucket, 2, 0.1, {**request, "seed": seed}, str(seed))
            self.state.queue.submit(job)
            self.ids.add(id)

    @staticmethod
    def _asked(seed: int) -> VideoRequest:
        return VideoRequest(prompt="a creature", size="16x16", num_frames=2, num_inference_steps=2, seed=seed)


def _kill_until_done(state: State, pool: _Pool, submitter: _Submitter, options: argparse.Namespace) -> int:
    chance = random.Random(options.seed)
    kills, next_kill, stopped, resume_at = 0, time.monotonic() + options.kill_every, None, 0.0
    told = time.monotonic()
    while submitter.is_alive() or _unfinished(state):
        now = time.monotonic()
        if now - told > 20:
            told = now
            print(f"{len(submitter.ids)} accepted, {_unfinished(state)} left, {kills} kills", file=sys.stderr)
        # Warm ones: what is killed while it starts holds no job, and the test is of those that do.
        warm = {row.pid for row in state.registry.alive() if row.ready}
        pids = [pid for pid in pool.pids() if pid != stopped and pid in warm]
        if stopped is None and not resume_at and pids:
            stopped, resume_at = chance.choice(pids), now + 2 * LEASE
            _send(stopped, signal.SIGSTOP)
            pids.remove(stopped)
        elif stopped is not None and now > resume_at:
            _send(stopped, signal.SIGCONT)
            stopped = None
        if now > next_kill and pids:
            _send(chance.choice(pids), signal.SIGKILL)
            kills, next_kill = kills + 1, now + options.kill_every
        time.sleep(0.2)
    if stopped is not None:
        _send(stopped, signal.SIGCONT)
        time.sleep(1)
    return kills


def _send(pid: int, sig: int) -> None:
    with suppress(ProcessLookupError):  # it has just ended by itself
        os.kill(pid, sig)


def _unfinished(state: State) -> int:
    waiting = videos.c.state.in_(("queued", "in_progress"))
    with state.database.read() as connection:
        return connection.scalar(select(func.count()).select_from(videos).where(waiting))


def _verdict(state: State, ids: set[str], wanted: int) -> dict[str, Any]:
    """Lost, doubled, failed; and whether each row's files are there and no others."""
    with state.database.read() as connection:
        rows = connection.execute(select(videos.c.id, videos.c.state, videos.c.attempt, videos.c.result)).all()
        doubled = connection.scalar(text("SELECT count(*) FROM (SELECT id FROM ends GROUP BY id HAVING count(*) > 1)"))
    done = {row.id for row in rows if row.state == "completed"}
    named = {file["key"] for row in rows if row.result for file in row.result["files"].values()}
    stored = {key for key in state.store.keys("videos") if "/reference-" not in key}
    verdict = {
        "jobs": len(ids),
        "completed": len(done & ids),
        "lost": len(ids - done),
        "with_two_results": doubled,
        "run_more_than_once": sum(row.attempt > 1 for row in rows),
        "files_missing": len(named - stored),
        "files_of_no_row": len(stored - named),  # of workers killed between storing and finishing; swept later
    }
    return {**verdict, "kept": len(ids) == wanted and not (verdict["lost"] or doubled or verdict["files_missing"])}


def restarts(options: argparse.Namespace) -> dict[str, Any]:
    """The whole server killed at random moments, starts included; what it accepted is then asked for."""
    chance, ids = random.Random(options.seed), []
    settings = {"fake_seconds": 0.01, "lease_seconds": 2, "max_attempts": 50, "max_active": 10**6, "max_wait": 1e9}
    with tempfile.TemporaryDirectory(prefix="videomaker-bench-") as name:
        folder = Path(name)
        for _ in range(options.times):
            with ServerProcess(folder, **settings) as server, server.client() as client:
                until = time.monotonic() + chance.uniform(0.2, 6)
                while time.monotonic() < until:
                    try:
                        ids.append(submit(client, seed=str(len(ids))).json()["id"])
                    except httpx2.TransportError:
                        break
                    time.sleep(chance.uniform(0, 0.4))
                server.stop(signal.SIGKILL)
        with ServerProcess(folder, **settings) as server, server.client() as client:
            ends = [wait_for(client, id, 300)["status"] for id in ids]
            server.stop()
        results = len(list((folder / "files").rglob("video.mp4")))
    kept = len(ends) == len(ids) and set(ends) == {"completed"}
    return {"kills": options.times, "accepted": len(ids), "completed": ends.count("completed"),
            "result_files": results, "kept": kept}  # fmt: skip
