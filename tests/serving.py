"""Helpers of the server's tests: services in a temporary folder, a client in the process, a server as a process."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient
from server_process import PICTURE, ServerProcess, submit, wait_for

from videomaker.serve import migrate
from videomaker.serve.app import create_app
from videomaker.serve.config import load_config
from videomaker.serve.loading import load_renderer
from videomaker.serve.queue import NewJob
from videomaker.serve.state import State
from videomaker.serve.worker import Worker

__all__ = ["PICTURE", "ServerProcess", "client_of", "make_state", "make_worker", "new_job", "submit", "wait_for"]


def make_state(folder: Path, **settings: Any) -> State:
    """Services over a fresh database and a fake renderer."""
    state = State(load_config(**{"data": folder, "renderer": "fake", **settings}))
    migrate.upgrade(state.database)
    return state


@contextmanager
def client_of(state: State) -> Iterator[TestClient]:
    """A client of the application in this process."""
    with TestClient(create_app(state), base_url="http://localhost") as client:
        yield client


def make_worker(state: State) -> Worker:
    """A worker that is asked for each batch (`work_once`) rather than run."""
    return Worker(state, load_renderer(state.config, "cpu"))


def new_job(**changes: Any) -> NewJob:
    """A job for the queue alone."""
    id = f"video_{uuid.uuid4().hex}"
    base = {
        "id": id, "owner": "ann", "model": "m", "bucket": "b", "steps": 10, "cost": 1.0, "request": {},
        "fingerprint": id,
    }  # fmt: skip
    return NewJob(**{**base, **changes})
