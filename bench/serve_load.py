"""What the server costs: time to accept, time over rendering alone, time until it is ready."""

from __future__ import annotations

import argparse
import concurrent.futures
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil
from PIL import Image
from server_process import PICTURE, ServerProcess, submit, wait_for

PROMPT = "a big creature hopping to the left over a green meadow"


def submit_rate(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds from sending a 512-pixel picture to the answer, requests leaving by the clock and not after answers."""
    pictures = [_photograph(seed) for seed in range(20)]
    settings = {"workers": 0, "max_active": 10**6, "max_wait": 1e9, "log_level": "error"}
    with (
        tempfile.TemporaryDirectory(prefix="videomaker-bench-") as folder,
        ServerProcess(Path(folder), **settings) as server,
        server.client(limits=httpx2.Limits(max_connections=64)) as client,
    ):
        for _ in range(10):
            submit(client, picture=pictures[0], size="512x512", num_frames="8")
        process = psutil.Process(server.process.pid)
        busy = _cpu_seconds(process)
        with concurrent.futures.ThreadPoolExecutor(64) as pool:
            start, futures = time.perf_counter(), []
            for index in range(int(options.rate * options.seconds)):
                due = start + index / options.rate
                time.sleep(max(0.0, due - time.perf_counter()))
                futures.append(pool.submit(_one, client, pictures[index % len(pictures)], index, due))
            times = [future.result() for future in futures]
            rate = len(times) / (time.perf_counter() - start)
        busy = _cpu_seconds(process) - busy
    p50, p90, p99 = (round(1000 * float(value), 1) for value in np.percentile(times, (50, 90, 99)))
    return {
        "asked_per_s": options.rate,
        "answered_per_s": round(rate, 1),
        "requests": len(times),
        "picture_bytes": len(pictures[0]),
        "server_cpu_ms_each": round(1000 * busy / len(times), 1),
        "ms_p50": p50,
        "ms_p90": p90,
        "ms_p99": p99,
    }


def _cpu_seconds(process: psutil.Process) -> float:
    """What a request costs whatever else the machine does."""
    times = process.cpu_times()
    return times.user + times.system


def _one(client: httpx2.Client, picture: bytes, index: int, due: float) -> float:
    answer = submit(client, picture=picture, size="512x512", num_frames="8", seed=str(index))
    assert answer.status_code == 200, answer.text
    return time.perf_counter() - due


def _photograph(seed: int) -> bytes:
    """A JPEG of 512 by 512 pixels with the detail of a photograph: smooth shapes and some grain."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (12, 12, 3), np.uint8)).resize(
        (512, 512), Image.Resampling.BICUBIC
    )
    pixels = np.clip(np.asarray(coarse) + generator.normal(0, 6, (512, 512, 3)), 0, 255).astype(np.uint8)
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "JPEG", quality=90)
    return target.getvalue()


def overhead(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds per video, a batch of videos each turn: `videomaker.jobs` in a process of its own, and the server.

    Each turn has processes of its own: one that does the very same work can be a fifth slower than another for life.
    """
    turns: list[tuple[str, float]] = []
    for turn in range(options.turns):
        with _server_and_alone() as kinds:
            for name in sorted(kinds, reverse=bool(turn % 2)):  # what else the machine does falls on both
                kinds[name](1, 10**6)
                turns.append((name, round(kinds[name](options.videos, 1000 * turn) / options.videos, 4)))
    medians = {name: statistics.median(s for kind, s in turns if kind == name) for name in ("alone", "server")}
    return {"videos": options.videos, "seconds_per_video": turns, "medians": medians,
            "ratio": round(medians["server"] / medians["alone"], 3)}  # fmt: skip


@contextmanager
def _server_and_alone() -> Iterator[dict[str, Callable[[int, int], float]]]:
    settings = {"renderer": "model", "max_wait": 1e9, "log_level": "error"}
    with (
        tempfile.TemporaryDirectory(prefix="videomaker-bench-") as folder,
        ServerProcess(Path(folder), **settings) as server,
        server.client() as client,
        _Alone() as alone,
    ):
        server.wait_ready(300)
        yield {"server": partial(_through_server, client), "alone": alone.make}


def _through_server(client: httpx2.Client, count: int, seed: int) -> float:
    start = time.perf_counter()
    ids = [submit(client, PROMPT, seed=str(seed + index)).json()["id"] for index in range(count)]
    # The stream of the last one ends with it. Asking twenty times a second took a fifth of a core from the renderer.
    with client.stream("GET", f"/v1/videos/{ids[-1]}/events", timeout=600) as events:
        events.read()
    assert all(wait_for(client, id, 600)["status"] == "completed" for id in ids)
    return time.perf_counter() - start


class _Alone:
    """A process that makes videos as `videomaker generate` does, told how many on its standard input."""

    CODE = """
import sys, tempfile
from pathlib import Path
from videomaker.jobs.quiet import quiet_libraries
quiet_libraries()
from videomaker.jobs.prepare import prepare
from videomaker.jobs.render import make_videos
from videomaker.jobs.request import Job, Recipe
prepared = prepare(Recipe())
for line in sys.stdin:
    count, seed = map(int, line.split())
    with tempfile.TemporaryDirectory() as folder:
        jobs = [Job((Path(sys.argv[1]),), sys.argv[2], seed + i, Path(folder, f"{i}.mp4")) for i in range(count)]
        list(make_videos(prepared, jobs))
    print("done", flush=True)
"""

    def __enter__(self) -> _Alone:
        command = [sys.executable, "-P", "-c", self.CODE, str(PICTURE), PROMPT]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        return self

    def make(self, count: int, seed: int) -> float:
        """Seconds for so many videos."""
        start = time.perf_counter()
        self._process.stdin.write(f"{count} {seed}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"
        return time.perf_counter() - start

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def ready(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds from the start of the command until a worker is warm, files of the system in memory."""
    with tempfile.TemporaryDirectory(prefix="videomaker-bench-") as name:
        folder = Path(name)
        if not options.compile:
            times = [_until_ready(folder / str(index)) for index in range(options.times)]
            return {"seconds": times, "median": statistics.median(times)}
        artifacts = folder / "artifacts"
        command = [sys.executable, "-P", "-m", "videomaker", "warmup", "--save", str(artifacts)]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, **_fresh_cache(folder / "saving")})
        anew = _until_ready(folder / "a", _fresh_cache(folder / "anew"), compile=1)
        saved = _until_ready(folder / "b", _fresh_cache(folder / "with"), compile=1, artifacts=artifacts)
    return {"anew": anew, "with_artifacts": saved, "ratio": round(saved / anew, 3)}


def _fresh_cache(folder: Path) -> dict[str, str]:
    """Where inductor finds nothing that it compiled before."""
    return {"TORCHINDUCTOR_CACHE_DIR": str(folder)}


def _until_ready(folder: Path, variables: dict[str, str] | None = None, **settings: Any) -> float:
    os.environ.update(variables or {})
    start = time.perf_counter()
    with ServerProcess(folder, renderer="model", log_level="error", **settings) as server:
        server.wait_ready(1200)
        return round(time.perf_counter() - start, 1)
