"""`videomaker worker`: the workers of one machine without the interface, for a scheduler of the team's own."""

from __future__ import annotations

import signal
import socket
import threading
import time
from types import FrameType

import structlog
from sqlalchemy.exc import SQLAlchemyError

from .checks import load_check
from .config import ServeConfig
from .housekeeping import Housekeeper
from .logs import configure_logs
from .model_files import localised
from .server import check_paths, prepare_storage
from .state import State
from .supervisor import Supervisor, worker_orders
from .tracing import configure_tracing

log = structlog.get_logger("videomaker.serve")
LOOK_SECONDS = 0.2


def work(config: ServeConfig) -> int:
    """Takes jobs from the database and makes them until SIGTERM, Ctrl-C, or `idle_exit`: the exit status.

    Raises:
        InputError: the settings cannot be used.
    """
    configure_logs(config)
    configure_tracing(config.telemetry)
    start = time.monotonic()
    config = localised(config)
    state = State(config)
    state.models  # noqa: B018  # are read, or refused, before a process is started for them
    check_paths(config)
    load_check(config.frames_check)
    prepare_storage(state)
    supervisor, housekeeper = Supervisor(worker_orders(config, least=1)), Housekeeper(state)
    names = ", ".join(one.name for one in config.served_here)
    print(f"VideoMaker worker of {names} for {state.database.shown}  (Ctrl-C ends)", flush=True)
    _obey_signals(supervisor, config.drain_seconds)
    supervisor.start()
    housekeeper.start()
    is_told = False
    while not supervisor.ended.wait(LOOK_SECONDS):
        if not is_told and _is_warm(state, supervisor):
            print(f"ready after {time.monotonic() - start:.1f} s", flush=True)
            is_told = True
    housekeeper.stop()
    state.database.close()
    return 2 if supervisor.failed.is_set() else 0


def _obey_signals(supervisor: Supervisor, drain_seconds: float) -> None:
    """The first signal lets the workers finish; with a second one they give back what they make."""
    graces = iter((drain_seconds,))

    def obey(_signal: int, _frame: FrameType | None) -> None:
        grace = next(graces, 0.0)
        log.info("draining", seconds=grace)
        threading.Thread(target=supervisor.stop, args=(grace,), name="drain", daemon=True).start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, obey)


def _is_warm(state: State, supervisor: Supervisor) -> bool:
    """Whether one of this machine's own workers is ready."""
    own = set(supervisor.pids())
    try:
        return any(row.ready and row.host == socket.gethostname() and row.pid in own for row in state.registry.alive())
    except SQLAlchemyError:
        return False  # away for now; the workers wait as well
