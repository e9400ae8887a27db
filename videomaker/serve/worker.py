"""A worker: takes batches from the queue, makes them on one device, publishes each video under its lease."""

from __future__ import annotations

import os
import socket
import threading
import time
import traceback
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

import structlog
from obstore.exceptions import BaseError
from sqlalchemy import Row
from sqlalchemy.exc import SQLAlchemyError

from videomaker.errors import first_line

from . import pictures
from .checks import load_check
from .lease import LeaseKeeper, Stopped
from .metrics import WorkerStats
from .models import batch_size
from .provenance import SigningFailed
from .queue import Claimed
from .registry import WorkerState
from .renderer import Failed, Made, OutOfMemory, Renderer, RenderJob
from .results import make_files, store_files
from .state import State
from .tracing import span

log = structlog.get_logger("videomaker.serve.worker")
POLL_SECONDS = (0.02, 0.2)  # between two looks at an empty queue: after a job, and after a while
BEAT_SECONDS = 3
PATIENCE = 600  # seconds for which a finished video waits for a store or a database that is away
STORE_SECONDS = 1  # until a store that failed is tried again
MEMORY = 0.3  # weight of the newest video in the mean of seconds
EXIT_HANGS = 75  # status of a worker that ended itself because a step did not end


@dataclass
class _Batch:
    """Jobs under one lease, and what became of those that could be loaded."""

    claimed: Claimed
    keeper: LeaseKeeper
    rows: Sequence[Row] = ()
    outcomes: Sequence[Made | Failed] = ()
    seconds: float = 0.0


class Worker:
    """The loop of one device.

    Args:
        state: the services of this process.
        renderer: a loaded model.
    """

    def __init__(self, state: State, renderer: Renderer):
        self.state, self.renderer = state, renderer
        self.id = f"worker-{uuid.uuid4().hex[:12]}"
        self.stats = WorkerStats()
        self._seconds: dict[str, float] = {}
        self._check = load_check(state.config.frames_check)
        self._ready, self._idle_exit = False, state.config.idle_exit
        self._beating, self._stop = threading.Lock(), threading.Event()
        self._stop_at = float("inf")

    @property
    def ready(self) -> bool:
        """Whether it is warm."""
        return self._ready

    def stop(self, grace: float) -> None:
        """Takes nothing more; a batch that is not finished within `grace` seconds is given back at its next step."""
        self._stop_at = time.monotonic() + grace
        self._stop.set()

    def run(self) -> None:
        """Warms up, then works until `stop`."""
        threading.Thread(target=self._beat_always, name="beat", daemon=True).start()
        start = time.perf_counter()
        self.renderer.warm_up(self.state.shapes)
        self._ready = True
        with suppress(SQLAlchemyError):  # the next beat tells it
            self._beat()
        log.info(
            "worker ready", worker=self.id, device=self.renderer.device, seconds=round(time.perf_counter() - start, 1)
        )
        try:
            with ThreadPoolExecutor(1, "publish") as publisher:
                self._work(publisher)
        finally:
            with suppress(SQLAlchemyError):  # it is forgotten anyway, a little later
                self.state.registry.leave(self.id)

    def _work(self, publisher: Executor) -> None:
        """While a batch is encoded and stored, the device makes the next; no more than one waits for the publisher."""
        pause, worked = POLL_SECONDS[0], time.monotonic()
        published: Future[None] | None = None
        while not self._stop.is_set():
            if published is not None and published.done():
                published = published.result()  # what nobody expected ends the worker, aloud
            try:
                batch = self._make_batch()
            except SQLAlchemyError as error:  # the database is away; leases decide what becomes of our jobs
                log.warning("database does not answer", error=first_line(error))
                batch = None
                self._stop.wait(1)
            if batch is not None:
                if published is not None:
                    published.result()
                published = publisher.submit(self._publish_batch, batch)
                pause, worked = POLL_SECONDS[0], time.monotonic()
                continue
            if self._idle_exit is not None and time.monotonic() - worked > self._idle_exit:
                break
            self._stop.wait(pause)
            pause = min(pause * 1.5, POLL_SECONDS[1])
        if published is not None:
            published.result()

    def work_once(self) -> bool:
        """Makes and publishes one batch, if any waits: whether there was one."""
        batch = self._make_batch()
        if batch is not None:
            self._publish_batch(batch)
        return batch is not None

    def _make_batch(self) -> _Batch | None:
        """A batch that was claimed and rendered, whose lease is kept; None when none waits."""
        config = self.state.config
        size = partial(batch_size, config=config, shapes=self.state.shapes)
        claimed = self.state.queue.claim(self.id, self.state.model.name, size, config.batch_wait)
        if claimed is None:
            return None
        keeper = LeaseKeeper(
            self.state.queue,
            claimed.lease,
            frozenset(row.id for row in claimed.rows),
            step_timeout=config.step_timeout,
            on_timeout=lambda: self._hangs(claimed),
            is_stopping=lambda: time.monotonic() > self._stop_at,
            patience=PATIENCE,
        )
        batch = _Batch(claimed, keeper)
        bucket, parents = claimed.rows[0].bucket, [row.traceparent for row in claimed.rows]
        keeper.start()
        try:
            with self._ended_well(batch), span("make videos", parents, bucket=bucket, videos=len(claimed.rows)):
                self._make(batch, size(bucket))
        except BaseException:  # else the lease of what nobody makes would be kept
            keeper.stop()
            raise
        return batch

    def _publish_batch(self, batch: _Batch) -> None:
        """Publishes what was made, and lets the lease go."""
        parents = [row.traceparent for row in batch.rows]
        try:
            if batch.rows:
                with self._ended_well(batch), span("publish videos", parents, videos=len(batch.rows)):
                    for row, outcome in zip(batch.rows, batch.outcomes, strict=True):
                        batch.keeper.alive()
                        self._publish(row, batch.claimed.lease, outcome, batch.seconds, batch.keeper)
        except SQLAlchemyError as error:
            log.warning("database does not answer", error=first_line(error))
        finally:
            batch.keeper.stop()

    @contextmanager
    def _ended_well(self, batch: _Batch) -> Iterator[None]:
        """Gives back what a store that is away, or the end of this worker, leaves undone."""
        try:
            yield
        except (Stopped, BaseError, OSError) as error:
            batch.rows, batch.outcomes = (), ()
            self._leave(batch.claimed, batch.keeper)
            if not isinstance(error, Stopped):  # the store stays away; nothing is wrong with the jobs
                log.warning("store does not answer", error=str(error))
                self._stop.wait(STORE_SECONDS)

    def _make(self, batch: _Batch, size: int) -> None:
        start, claimed, keeper = time.perf_counter(), batch.claimed, batch.keeper
        loaded = [(row, job) for row in claimed.rows if (job := self._load(row, claimed.lease, keeper))]
        if not loaded:
            return
        rows, jobs = zip(*loaded, strict=True)
        try:
            outcomes = self._render(jobs, size, keeper)
        except OutOfMemory as error:
            log.warning("out of memory", bucket=rows[0].bucket, batch=size, error=str(error))
            outcomes = [self._alone(job, keeper) for job in jobs]
        batch.rows, batch.outcomes, batch.seconds = rows, outcomes, time.perf_counter() - start
        self._learn(rows[0].bucket, batch.seconds / len(rows), len(rows) / size)

    def _load(self, row: Row, lease: str, keeper: LeaseKeeper) -> RenderJob | None:
        """The job with its pictures; None, and a failed job, when the store has them no more."""
        keys = [reference["key"] for reference in row.request["references"]]
        try:
            files = [keeper.insist(partial(self.state.store.get, key)) for key in keys]
        except FileNotFoundError as error:
            log.error("reference lost", video=row.id, error=str(error), request_id=row.request_id)
            self._publish(row, lease, Failed("reference_lost", "the picture of the subject is gone"), 0.0, keeper)
            return None
        references = (pictures.from_file(key, data, row.request) for key, data in zip(keys, files, strict=True))
        return RenderJob(row.id, row.request, tuple(references))

    def _render(self, jobs: Sequence[RenderJob], size: int, keeper: LeaseKeeper) -> list[Made | Failed]:
        try:
            return self.renderer.render(jobs, size, keeper.on_step)
        except (Stopped, OutOfMemory):
            raise
        except Exception as error:  # a job that fails must not take the worker, nor its neighbours, with it
            log.error("render failed", jobs=[job.id for job in jobs], error=traceback.format_exc())
            if len(jobs) == 1:
                return [Failed("render_failed", f"the video could not be made: {type(error).__name__}")]
        return [self._alone(job, keeper, size) for job in jobs]

    def _alone(self, job: RenderJob, keeper: LeaseKeeper, size: int = 1) -> Made | Failed:
        keeper.restart()
        try:
            return self._render([job], size, keeper)[0]
        except OutOfMemory as error:
            return Failed("out_of_memory", str(error))

    def _publish(self, row: Row, lease: str, outcome: Made | Failed, seconds: float, keeper: LeaseKeeper) -> None:
        queue, start = self.state.queue, time.perf_counter()
        files = self._files(row, outcome)
        if isinstance(files, Failed):
            failed = files
            keeper.insist(lambda: queue.finish(lease, row.id, error=failed.__dict__))
            self.stats.fail(failed.code)
            log.warning("video failed", video=row.id, code=failed.code, request_id=row.request_id)
            return
        encoded = time.perf_counter()
        described = keeper.insist(lambda: store_files(self.state.store, row.id, lease, files))
        stored = time.perf_counter()
        phases = {"render": seconds, "encode": encoded - start, "store": stored - encoded}
        signed = self.state.credentials is not None
        result = {"lease": lease, "files": described, "seconds": phases, "signed": signed}
        if not keeper.insist(lambda: queue.finish(lease, row.id, result=result)):
            self.state.store.delete(f"videos/{row.id}/{lease}")
            log.info("result not wanted", video=row.id, request_id=row.request_id)
            return
        if row.attempt:  # an earlier run may have left files
            self.state.store.delete(f"videos/{row.id}", keep=(lease, "reference-"))
        for phase, value in {"wait": row.age, **phases}.items():
            self.stats.observe(row.bucket, phase, value)
        log.info("video made", video=row.id, seconds=round(seconds, 3), request_id=row.request_id)

    def _files(self, row: Row, outcome: Made | Failed) -> dict[str, tuple[str, str, bytes]] | Failed:
        """What is stored of a video; nothing of one that the team's check refuses, or could not look at."""
        if isinstance(outcome, Failed):
            return outcome
        try:
            reason = self._check and self._check(row.request, outcome.frames)
        except Exception as error:
            return self._failed(row, "check_failed", f"the video could not be checked: {type(error).__name__}")
        if reason:
            return Failed("safety_rejected", reason)
        try:
            return make_files(outcome, row.request, self.state.config, self.state.credentials)
        except SigningFailed as error:  # an unsigned one is not what was promised
            return self._failed(row, "signing_failed", str(error))
        except OSError:  # a full disk, say: nothing is wrong with the job
            raise
        except Exception as error:
            return self._failed(row, "encode_failed", f"the video could not be encoded: {type(error).__name__}")

    def _failed(self, row: Row, code: str, message: str) -> Failed:
        """As in `_render`: a job that fails takes neither the worker nor its neighbours with it."""
        log.error(code.replace("_", " "), video=row.id, error=traceback.format_exc())
        return Failed(code, message)

    def _leave(self, claimed: Claimed, keeper: LeaseKeeper) -> None:
        """What is still wanted goes back into the queue; what was cancelled ends."""
        self.state.queue.release(claimed.lease)
        log.info("batch stopped", videos=[row.id for row in claimed.rows], step=keeper.step)

    def _hangs(self, claimed: Claimed) -> None:
        """A step does not end. Nothing but the end of the process ends it.

        Of a batch nobody knows whose fault it is: its leases lapse, and each job is tried again alone.
        """
        seconds = self.state.config.step_timeout
        error = {"code": "step_timeout", "message": f"a step took longer than {seconds:g} s"}
        log.error("step timeout", videos=[row.id for row in claimed.rows])
        try:
            if len(claimed.rows) == 1:
                self.state.queue.finish(claimed.lease, claimed.rows[0].id, error=error)
        except Exception as away:  # the database: the job's lease lapses, too
            log.warning("database does not answer", error=first_line(away))
        finally:
            os._exit(EXIT_HANGS)

    def _learn(self, bucket: str, seconds: float, fill: float) -> None:
        old = self._seconds.get(bucket, seconds)
        self._seconds[bucket] = old + MEMORY * (seconds - old)
        self.stats.fill(fill)

    def _beat_always(self) -> None:
        while True:
            try:
                self._beat()
            except Exception as error:  # whatever it is, a worker that falls silent is taken for dead
                log.warning("beat failed", kind=type(error).__name__, error=first_line(error))
            time.sleep(BEAT_SECONDS)

    def _beat(self) -> None:
        state = WorkerState(
            id=self.id,
            model=self.state.model.name,
            device=self.renderer.device,
            host=socket.gethostname(),
            pid=os.getpid(),
            ready=self._ready and not self._stop.is_set(),
            seconds=dict(self._seconds),
            stats=self.stats.as_json(),
        )
        with self._beating:  # two first beats at once would both insert
            self.state.registry.beat(state)
