"""Keeping a lease while a batch is made: a thread that renews it, and tells the loop when to stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

import structlog
from obstore.exceptions import BaseError
from sqlalchemy.exc import SQLAlchemyError

from videomaker.errors import first_line

from .database import PASSING
from .queue import Queue

T = TypeVar("T")
log = structlog.get_logger("videomaker.serve.worker")
PROGRESS_SECONDS = 0.5  # between two renewals while steps come in
AGAIN_SECONDS = 1  # between two tries of something that is away
AWAY = (*PASSING, BaseError, OSError)  # errors of a database or a store, not of a job


class Stopped(Exception):
    """Raised in the loop of steps: nobody wants the batch any more, or the worker must give it back."""


class LeaseKeeper:
    """From `start` to `stop` the lease of a batch is renewed, as long as steps come.

    Args:
        queue, lease: of the claim.
        ids: of the jobs.
        step_timeout: seconds without a step after which `on_timeout` is called and the lease let go.
        on_timeout: ends a process that hangs.
        is_stopping: whether the worker must give its jobs back now.
        patience: seconds for which `insist` goes on.
    """

    def __init__(
        self,
        queue: Queue,
        lease: str,
        ids: frozenset[str],
        *,
        step_timeout: float,
        on_timeout: Callable[[], None],
        is_stopping: Callable[[], bool],
        patience: float = 600,
    ):
        self.queue, self.lease, self.wanted = queue, lease, ids
        self.step, self.patience = 0, patience
        self._step_timeout, self._on_timeout, self._is_stopping = step_timeout, on_timeout, is_stopping
        self._moved = time.monotonic()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def start(self) -> None:
        """Renews from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Renews no more."""
        self._end.set()
        self._thread.join()

    def on_step(self) -> None:
        """After every step.

        Raises:
            Stopped: the loop has to end.
        """
        self.step += 1
        self.go_on()

    def go_on(self) -> None:
        """Before another try of something.

        Raises:
            Stopped: there is to be none.
        """
        self.alive()
        if not self.wanted or self._is_stopping():
            raise Stopped

    def insist(self, call: Callable[[], T]) -> T:
        """The outcome of a call to the database or the store, made again while they are away; the lease is kept.

        Raises:
            Stopped: the loop has to end.
            FileNotFoundError: the store says that there is no such file.
        """
        until = time.monotonic() + self.patience
        while True:
            try:
                return call()
            except FileNotFoundError:
                raise
            except AWAY as error:
                if time.monotonic() > until:
                    raise
                log.warning("tried again", error=first_line(error)[:300])
            self._end.wait(AGAIN_SECONDS)
            self.go_on()

    def alive(self) -> None:
        """Something was done: the step's time starts anew."""
        self._moved = time.monotonic()

    def restart(self) -> None:
        """The same jobs are made anew, from the first step."""
        self.step = 0
        self.alive()

    def _keep(self) -> None:
        renewed, told, pause = time.monotonic(), 0, self.queue.lease_seconds / 3
        while not self._end.wait(min(PROGRESS_SECONDS, pause)):
            now = time.monotonic()
            if now - self._moved > self._step_timeout:
                self._on_timeout()
                return
            if now - renewed < pause and self.step == told:
                continue
            try:
                step = self.step
                answer = self.queue.renew(self.lease, step)
            except SQLAlchemyError as error:  # the lease lasts for two more tries
                log.warning("lease not renewed", error=str(error))
                continue
            renewed, told = now, step
            self.wanted = answer.held - answer.cancelled
