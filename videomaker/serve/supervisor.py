"""The workers of this machine: a process for each device, restarted with back-off, ended with the server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog

from .child import EXIT_INPUT
from .config import ServeConfig

log = structlog.get_logger("videomaker.serve.supervisor")
BACK_OFF = (0.5, 60.0)  # seconds before a restart: the first, the longest
STEADY_SECONDS = 10  # a worker that lived so long starts anew at once
KILL_MARGIN = 10  # seconds over the grace after which a worker that does not end is killed


@dataclass(frozen=True)
class Order:
    """A worker to start: the settings of its model, and its device."""

    config: ServeConfig
    device: str


@dataclass
class _Slot:
    order: Order
    process: subprocess.Popen | None = None
    started: float = 0.0
    delay: float = 0.0
    due: float = 0.0
    exits: list[int] = field(default_factory=list)


class Supervisor:
    """Starts, watches and ends the worker processes.

    Args:
        orders: a worker each.
        spare: of `start_spare`: becomes the first of them.

    Attributes:
        ended: set when there are no workers and will be none: told to stop, or all have gone home (`idle_exit`).
        failed: set when a worker says that the settings cannot be used; its message is on stderr.
    """

    def __init__(self, orders: Sequence[Order], spare: subprocess.Popen | None = None):
        self.failed, self.ended = threading.Event(), threading.Event()
        self._slots = [_Slot(order) for order in orders]
        self._end, self._spare = threading.Event(), spare
        self._starting = threading.Lock()  # none is started that `stop` does not see
        self._until = float("inf")
        # One thread starts all: on Linux a child dies with the thread that started it.
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)

    def start(self) -> None:
        """Starts the workers."""
        self._thread.start()

    def pids(self) -> list[int]:
        """The processes that run."""
        return [slot.process.pid for slot in self._slots if slot.process and slot.process.poll() is None]

    def stop(self, grace: float) -> None:
        """Ends the workers, which may finish what they make within `grace` seconds; well after that they are killed.

        Called again meanwhile, it shortens the grace.
        """
        self._until = min(self._until, time.monotonic() + grace + KILL_MARGIN)
        with self._starting:
            self._end.set()
            running = [slot.process for slot in self._slots if slot.process and slot.process.poll() is None]
        for process in running:
            process.terminate()
        for process in running:
            while process.poll() is None and time.monotonic() < self._until:
                time.sleep(0.05)
            if process.poll() is None:
                log.warning("worker killed", pid=process.pid)
                process.kill()
                process.wait()

    def _watch(self) -> None:
        while not self._end.is_set() and not self.failed.is_set() and not self._have_gone_home():
            for slot in self._slots:
                self._look_after(slot)
            self._end.wait(0.1)
        while self.pids():  # the thread must outlive its children
            time.sleep(0.05)
        self.ended.set()

    def _have_gone_home(self) -> bool:
        return bool(self._slots) and all(slot.due == float("inf") for slot in self._slots)

    def _look_after(self, slot: _Slot) -> None:
        now = time.monotonic()
        if slot.process is not None and (status := slot.process.poll()) is not None:
            slot.process = None
            lived = now - slot.started
            if status == EXIT_INPUT and not slot.exits:
                self.failed.set()
            if status == 0 and slot.order.config.idle_exit is not None:
                slot.due = float("inf")
                return
            slot.exits.append(status)
            steady = lived > STEADY_SECONDS
            slot.delay = BACK_OFF[0] if steady or not slot.delay else min(2 * slot.delay, BACK_OFF[1])
            slot.due = now + slot.delay
            model, device = slot.order.config.name, slot.order.device
            lived = round(lived, 1)
            log.warning("worker ended", model=model, device=device, status=status, lived=lived, restart_in=slot.delay)
        if slot.process is None and now >= slot.due:
            with self._starting:
                if self._end.is_set():
                    return
                process, self._spare = self._spare or _start(slot.order.config), None
                _send(process, slot.order)
                slot.process, slot.started = process, now


def start_spare(config: ServeConfig) -> subprocess.Popen | None:
    """A worker that loads its libraries beside this process before anybody knows what it is for; it ends with it.

    Called from a thread that lives as long as the process. None where no worker will be wanted, or a light one.
    """
    wanted = config.engine == "local" and config.renderer == "model" and config.workers != 0
    return _start(config) if wanted else None


def _start(config: ServeConfig) -> subprocess.Popen:
    # -P: a folder of the working directory must not hide a package.
    command = [sys.executable, "-P", "-m", "videomaker.serve.child"]
    light = ["--light"] if config.renderer == "fake" else []
    return subprocess.Popen([*command, *light], stdin=subprocess.PIPE, text=True)


def _send(process: subprocess.Popen, order: Order) -> None:
    assert process.stdin is not None  # as it was asked for
    line = {"config": order.config.model_dump(mode="json"), "device": order.device}
    try:
        process.stdin.write(json.dumps(line) + "\n")
        process.stdin.flush()  # and stays open: its end tells the child that we are gone
    except BrokenPipeError:
        pass  # it died at once; the next look sees that


def worker_orders(config: ServeConfig, *, least: int = 0) -> list[Order]:
    """The workers to start here: of every model, one for each of its devices.

    With `least` above 0, `workers = 0` is for the servers that read the same settings, and does not count here.
    """
    wanted = [
        one.model_copy(update={"workers": None}) if least and one.workers == 0 else one for one in config.served_here
    ]
    return [Order(one, device) for one in wanted for device in worker_devices(one)]


def worker_devices(config: ServeConfig) -> list[str]:
    """A device for each worker of a model."""
    devices = list(config.devices) or _cuda_devices() or ["auto"]
    return devices if config.workers is None else [devices[i % len(devices)] for i in range(config.workers)]


def _cuda_devices() -> list[str]:
    """The CUDA devices that children will see, found without loading torch here."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [f"cuda:{index}" for index, name in enumerate(visible.split(",")) if name.strip() not in ("", "-1")]
    try:
        import pynvml  # late: optional, and a driver is asked

        pynvml.nvmlInit()
        return [f"cuda:{index}" for index in range(pynvml.nvmlDeviceGetCount())]
    except Exception:  # no package, no driver, no GPU: each its own error
        return []
