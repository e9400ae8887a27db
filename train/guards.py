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

from videomaker.errors import first_line

from .config import GuardConfig

EXIT_HANG = 75  # EX_TEMPFAIL: worth another try
ORPHAN_SECONDS = 300.0  # for the step in progress and its checkpoint, once the launcher is gone
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


class EndAtOnce:
    """While a run loads, there is nothing to save: a signal or the launcher's death ends the process within a second.

    Python runs a signal's handler only between two of its own instructions, which may be minutes apart while libraries
    load, compile or wait for other ranks; a thread hears of it at once.
    """

    def __init__(self, launcher: Launcher):
        self._launcher = launcher
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._reader.settimeout(_POLL_SECONDS)
        self._done = False

    def __enter__(self) -> EndAtOnce:
        self._before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, name="loading", daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self._done = True
        signal.set_wakeup_fd(self._before)

    def _watch(self) -> None:
        while not self._done:
            try:
                for number in self._reader.recv(16):
                    if number in (signal.SIGTERM, signal.SIGINT) and not self._done:
                        self._end(signal.Signals(number).name, 128 + number)
            except TimeoutError:
                if self._launcher.gone and not self._done:
                    self._end("the launcher is gone", 1)

    def _end(self, reason: str, code: int) -> None:
        print(f"stopped while loading, nothing was changed: {reason}", file=sys.stderr, flush=True)
        os._exit(code)


class Launcher:
    """The processes that started this rank and answer for it: `deepspeed`, which has a child of its own, or `torchrun`.

    Other starters (`srun`, `mpirun`) end their tasks themselves.
    """

    def __init__(self):
        self._parent = os.getppid() if {"CROSS_SIZE", "TORCHELASTIC_RUN_ID"} & os.environ.keys() else None
        self._outer: int | None = None
        self._orphaned = False
        if "CROSS_SIZE" in os.environ:  # set by DeepSpeed's launcher
            self._find_outer()

    def _find_outer(self) -> None:
        try:
            inner = psutil.Process(self._parent)
            outer = inner.parent()
            if outer is not None and "deepspeed" in " ".join(outer.cmdline()):
                self._outer = outer.pid
            elif "--node_rank" not in " ".join(inner.cmdline()):  # on one machine there always is one
                self._orphaned = outer is None or outer.pid == 1
        except psutil.NoSuchProcess:
            self._orphaned = True
        except psutil.AccessDenied:
            pass

    @property
    def gone(self) -> bool:
        """Whether one of them has ended, so that nobody would hear of this rank's end."""
        if self._orphaned or (self._parent is not None and os.getppid() != self._parent):
            return True
        if self._outer is None:
            return False
        try:
            return psutil.Process(self._parent).ppid() != self._outer
        except psutil.NoSuchProcess:
            return True


class Watchdog:
    """A thread that ends this process when no step finishes for `seconds`, and asks to stop when the launcher died.

    It watches between `__enter__` and `__exit__`. A collective that waits for a lost rank never returns and cannot be
    interrupted from Python, hence the exit. Without a launcher nobody else ends a rank, so the exit comes sooner.
    """

    def __init__(self, seconds: float, stop: StopRequest, launcher: Launcher | None = None):
        self.seconds = seconds
        self.stop = stop
        self._launcher = launcher or Launcher()
        self._last_beat = time.monotonic()
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
        limit = self.seconds or math.inf
        while not self._done.wait(_POLL_SECONDS):
            if not self.stop.reason and self._launcher.gone:
                self.stop.reason = "the launcher is gone"
                limit = min(limit, ORPHAN_SECONDS)
                self.beat()
            if time.monotonic() - self._last_beat > limit:
                self._give_up(limit)

    def _give_up(self, limit: float) -> None:
        print(
            f"rank {os.environ.get('RANK', 0)}: no step for {limit:.0f} s (guards.watchdog); this is where its "
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
        reason = first_line(error)[:200]
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
