"""`videomaker serve` as a process, and what is sent to it: for the server's benchmarks and tests."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Self

import httpx2
import psutil

PICTURE = Path(__file__).parent.parent / "videomaker" / "assets" / "moss.png"


def submit(client: Any, prompt: str = "a creature", headers: dict[str, str] | None = None, **fields: Any) -> Any:
    """The answer to a create with the bundled picture; `picture=None` sends none."""
    picture = fields.pop("picture", PICTURE.read_bytes())
    files = [] if picture is None else [("input_reference", ("x.png", picture))]
    return client.post("/v1/videos", data={"prompt": prompt, **fields}, files=files, headers=headers or {})


class Process:
    """A command of `videomaker` as its users start it.

    Args:
        folder: of its data.
        arguments: the command and its own.
        settings: of the server, as variables.
    """

    def __init__(self, folder: Path, *arguments: str, **settings: Any):
        values = {"data": folder, "renderer": "fake", "log_format": "json", **settings}
        environment = {f"VIDEOMAKER_{name.upper()}": str(value) for name, value in values.items()}
        self.log = folder / "server.log"
        folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "videomaker", *arguments],
                env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def _line(self, pattern: str, seconds: float) -> str:
        until = time.monotonic() + seconds
        while line := self._lines.get(timeout=max(0.1, until - time.monotonic())):
            if match := re.search(pattern, line):
                return match[0]
        raise AssertionError(f"the server ended: {self.log.read_text()[-2000:]}")

    def wait_ready(self, seconds: float = 600) -> float:
        """Until a worker is warm: the seconds that the server says it took."""
        return float(self._line(r"ready after [\d.]+", seconds).split()[-1])

    def children(self) -> list[int]:
        """Its workers' processes."""
        return [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]

    def stop(self, sig: int = signal.SIGTERM, seconds: float = 60) -> int:
        """Ends it: the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        return self.process.wait(seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(signal.SIGKILL)


class ServerProcess(Process):
    """`videomaker serve`, on a free port."""

    def __init__(self, folder: Path, *arguments: str, **settings: Any):
        super().__init__(folder, "serve", *arguments, **{"port": 0, **settings})
        self.address = self._line(r"http://\S+", 180)

    def client(self, **options: Any) -> httpx2.Client:
        """A connection to it."""
        return httpx2.Client(base_url=self.address, timeout=60, **options)


class WorkerProcess(Process):
    """`videomaker worker`."""

    def __init__(self, folder: Path, *arguments: str, **settings: Any):
        super().__init__(folder, "worker", *arguments, **settings)


def wait_for(client: Any, id: str, seconds: float = 30, until: tuple[str, ...] = ("completed", "failed")) -> dict:
    """The video once it has ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        video = client.get(f"/v1/videos/{id}").json()
        if video["status"] in until:
            return video
        time.sleep(0.05)
    raise AssertionError(f"{id} is still {video['status']} after {seconds} s")
