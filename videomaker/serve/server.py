"""`videomaker serve`: one process for the API, its workers as children, until a signal."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import structlog
from sqlalchemy.exc import DatabaseError

from videomaker.errors import InputError, first_line

from . import migrate
from .checks import load_check
from .config import ServeConfig
from .database import PASSING, shown_url
from .housekeeping import Housekeeper
from .logs import configure_logs
from .model_files import localised
from .state import State
from .supervisor import Supervisor, worker_orders
from .tracing import configure_tracing

log = structlog.get_logger("videomaker.serve")


def serve(config: ServeConfig, spare: subprocess.Popen | None = None) -> int:
    """Serves until SIGTERM or Ctrl-C: the exit status.

    Args:
        config: the settings.
        spare: of `supervisor.start_spare`.

    Raises:
        InputError: the settings cannot be used: an open address without keys, a port in use, a model that is none.
    """
    configure_logs(config)
    configure_tracing(config.telemetry)
    start = time.monotonic()
    config = localised(config, facts_only=config.engine != "local")
    state = State(config)
    check_state(state)
    listener = _listen(config)
    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    print(f"VideoMaker at {address}  (data in {config.data}; Ctrl-C ends)", flush=True)
    orders = worker_orders(config.model_copy(update={"idle_exit": None})) if config.engine == "local" else []
    supervisor = Supervisor(orders, spare)
    housekeeper = Housekeeper(state)
    supervisor.start()
    housekeeper.start()
    from .web import WebServer  # late: the workers, which take longest, load beside it

    server = WebServer(state, supervisor)
    threading.Thread(target=_tell_when_ready, args=(state, start), daemon=True).start()
    server.run(sockets=[listener])
    housekeeper.stop()
    state.database.close()
    return 2 if supervisor.failed.is_set() else 0


def check_state(state: State) -> None:
    """Refuses what cannot be served, and makes files and database ready.

    Raises:
        InputError: with the reason.
    """
    config = state.config
    for facts in state.models.values():  # are read, or refused, now rather than by the first request
        for shape in facts.shapes:
            if shape.height % facts.factor or shape.width % facts.factor:
                raise InputError(f"shapes: {shape}: both sides must be multiples of {facts.factor} for {facts.name}")
    check_paths(config)
    load_check(config.request_check)
    load_check(config.frames_check)
    state.credentials  # noqa: B018
    state.highlighter.check()
    prepare_storage(state)
    state.signer  # noqa: B018
    if not (config.is_loopback or state.keys.exist()):
        raise InputError(
            f"--host {config.host} lets others in and there are no keys: videomaker keys create NAME, or leave it out"
        )


def check_paths(config: ServeConfig) -> None:
    """Refuses settings that name what is not there.

    Raises:
        InputError: with the first of them.
    """
    for one in config.served:
        for name in ("weights", "motion_adapter", "artifacts"):
            path = getattr(one, name)
            if path is not None and not Path(path).exists():
                raise InputError(f"{name} {path} does not exist: give its path, or leave it out")


def prepare_storage(state: State) -> None:
    """Brings the tables to this program's version, and makes sure that files can be kept.

    Raises:
        InputError: the database or the store does not answer, or a newer program wrote the tables.
    """
    try:
        migrate.upgrade(state.database)
    except PASSING as error:
        reason = first_line(error.orig or error)
        raise InputError(f"database {state.database.shown} does not answer: {reason}") from error
    except DatabaseError as error:  # a damaged file, or one that is none
        reason = first_line(error.orig or error)
        raise InputError(f"database {state.database.shown} cannot be used: {reason}; restore a backup") from error
    state.store.check()


def _listen(config: ServeConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
    except OSError as error:
        listener.close()
        raise InputError(f"--host {config.host} --port {config.port}: {error.strerror}; choose another") from error
    listener.listen(2048)
    return listener


def _tell_when_ready(state: State, start: float) -> None:
    """Once every model has a warm worker."""
    while not state.draining:
        if all(state.registry.is_ready(facts.workers) for facts in state.models.values()):
            print(f"ready after {time.monotonic() - start:.1f} s", flush=True)
            return
        time.sleep(0.1 if time.monotonic() - start < 60 else 2)  # a replica without workers may wait for long


def show_config(config: ServeConfig) -> None:
    """Prints the resolved settings as JSON."""
    shown = config.model_dump(mode="json")
    if config.database:
        shown["database"] = shown_url(config.database)
    shown["files_options"] = {name: _hidden(name, value) for name, value in config.files_options.items()}
    json.dump(shown, sys.stdout, indent=2)
    print()


def _hidden(name: str, value: str) -> str:
    return (
        "***"
        if any(word in name.lower() for word in ("secret", "token", "password", "key", "credential", "connection"))
        else value
    )
