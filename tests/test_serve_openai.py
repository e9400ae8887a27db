"""The official client, unmodified, the newest and the oldest that knows videos, against a server process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path

import pytest
from serving import PICTURE, ServerProcess

from videomaker.serve.config import load_config
from videomaker.serve.state import State

SCRIPT = Path(__file__).parent / "openai_calls.py"
OLDEST = "2.2.0"  # the first with `client.videos`
# What it needs beside what is installed here.
OLD_PACKAGES = [f"openai=={OLDEST}", "distro==1.9.0", "httpx==0.28.1", "httpcore==1.0.9", "sniffio==1.3.1"]


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("server")
    settings = {"fake_seconds": 0.04, "assumed_seconds": 1}
    with ServerProcess(folder, **settings) as server:
        server.wait_ready()
        server.keys = State(load_config(data=folder)).keys
        yield server


@pytest.fixture(scope="module")
def oldest(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("openai")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), *OLD_PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        pytest.skip(f"openai {OLDEST} cannot be installed here: {done.stderr[-200:]}")
    return folder


@contextmanager
def losing_the_first_answer(address: str) -> Iterator[str]:
    """A proxy: the first connection's request reaches the server, its answer is dropped; later ones pass."""
    host, port = address.removeprefix("http://").split(":")
    listener = socket.create_server(("127.0.0.1", 0))
    lost = threading.Event()

    def pass_on(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):  # the other side has hung up
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def handle(near: socket.socket) -> None:
        with near, socket.create_connection((host, int(port))) as far:
            first = not lost.is_set()
            lost.set()
            threading.Thread(target=pass_on, args=(near, far), daemon=True).start()
            if first:
                far.recv(65536)  # the server has accepted
                near.shutdown(socket.SHUT_RDWR)
            else:
                pass_on(far, near)

    def accept() -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=handle, args=(near,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    with listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    assert lost.is_set()


def run(server: ServerProcess, name: str, path: Path | None = None) -> str:
    key = server.keys.create(name, max_active=1)
    with losing_the_first_answer(server.address) as lossy:
        done = subprocess.run(
            [sys.executable, str(SCRIPT), server.address, lossy, key, str(PICTURE)],
            env={**os.environ, "PYTHONPATH": str(path or "")}, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def test_the_newest_client(server):
    assert run(server, "newest") == metadata.version("openai")


def test_the_oldest_client(server, oldest):
    assert run(server, "oldest", oldest) == OLDEST
