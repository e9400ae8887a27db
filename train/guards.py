"""What ends or refuses work: signals, a lost launcher, a hang, a loss that is not finite or jumps."""

from __future__ import annotations

import faulthandler
import math
import os
import signal
import socket
import sys
import threading
import time
from collections import deque
from typing import Any

import psutil
from torch import distributed as dist

from .config import GuardConfig

EXIT_HANG = 75  # EX_TEMPFAIL: worth another try
_POLL_SECONDS = 1.0


class StopRequest:
    """Set by SIGTERM, SIGINT, or the death of the launcher; the trainer asks for it between steps."""

    def __init__(self):
        self.reason = ""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame) -> None:
        if self.reason and number == signal.SIGINT:  # a second Ctrl-C means now
            raise KeyboardInterrupt
        self.reason = f"received {signal.Signals(number).name}"


class Watchdog:
    """A thread that ends this process when no step finishes for `seconds`, and asks to stop when the launcher died.

    It watches between `__enter__` and `__exit__`. A collective that waits for a lost rank never returns and cannot be
    interrupted from Python, hence the exit.
    """

    def __init__(self, seconds: float, stop: StopRequest):
        self.seconds = seconds
        self.stop = stop
        self._last_beat = time.monotonic()
        self._launcher = os.getppid() if "CROSS_SIZE" in os.environ else None  # set by DeepSpeed's launcher
        self._done = threading.Event()

    def __enter__(self) -> Watchdog:
        self.beat()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self._done.set()

    def beat(self) -> None:
        """Says that the run is alive."""
        self._last_beat = time.monotonic()

    def _watch(self) -> None:
        while not self._done.wait(_POLL_SECONDS):
            if self._launcher and os.getppid() != self._launcher:
                self.stop.reason = self.stop.reason or "the launcher is gone"
            if self.seconds and time.monotonic() - self._last_beat > self.seconds:
                self._give_up()

    def _give_up(self) -> None:
        print(
            f"rank {os.environ.get('RANK', 0)}: no step for {self.seconds:.0f} s (guards.watchdog); this is where its "
            "threads stand. Look for a rank that ended or a file system that hangs, then start again with "
            "checkpoint.resume=auto",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(file=sys.stderr)
        os._exit(EXIT_HANG)


class Peers:
    """Who takes part, so that a broken connection can be told as the rank that is gone. All ranks make one at once."""

    def __init__(self):
        self._host = socket.gethostname()
        self._ranks: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(self._ranks, (self._host, os.getpid()))

    def explain(self, error: RuntimeError) -> str:
        """One line for a collective that failed: the ranks of this host that no longer run, and what to do."""
        gone = [
            f"rank {rank} (process {process} on {host})"
            for rank, (host, process) in enumerate(self._ranks)
            if host == self._host and not _runs(process)
        ]
        who = ", ".join(gone) or "a rank on another host"
        reason = str(error).strip().splitlines()[0][:200]
        return f"lost {who}; its own output says why. Start again with checkpoint.resume=auto ({reason})"


def _runs(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_lost_connection(error: RuntimeError) -> bool:
    """Whether this is how Gloo or NCCL say that a peer is gone."""
    text = str(error)
    return any(sign in text for sign in ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL"))


class LossGuard:
    """Refuses the step of a loss that is not finite, or far above all recent ones."""

    def __init__(self, settings: GuardConfig):
        self.settings = settings
        self.recent: deque[float] = deque(maxlen=settings.spike_window)
        self.skipped = 0
        self.in_a_row = 0

    def objection(self, loss: float) -> str:
        """Why the step of this loss should be skipped; "" when it should not."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        full = len(self.recent) == self.recent.maxlen
        if full and self.settings.spike_factor and loss > self.settings.spike_factor * max(self.recent):
            return f"the loss {loss:.4g} is over {self.settings.spike_factor:g} times the last {len(self.recent)}"
        return ""

    def accept(self, loss: float) -> None:
        """Counts a step that was taken."""
        self.recent.append(loss)
        self.in_a_row = 0

    def reject(self) -> None:
        """Counts a step that was skipped."""
        self.skipped += 1
        self.in_a_row += 1

    @property
    def exhausted(self) -> bool:
        """Whether too many steps in a row were skipped."""
        return self.in_a_row >= self.settings.max_skipped

    def state_dict(self) -> dict:
        """What a resumed run needs to decide alike."""
        return {"recent": list(self.recent), "skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict) -> None:
        """Takes up `state_dict()`."""
        self.recent.extend(state["recent"])
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]
