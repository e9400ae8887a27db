"""How many GPUs a load needs: a discrete-event simulation of the queue, and what it says against a real run."""

from __future__ import annotations

import argparse
import heapq
import math
import random
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from serving_bench import fake_state, put_job

from videomaker.serve.loading import load_renderer
from videomaker.serve.worker import POLL_SECONDS, Worker

HORIZON = 4 * 3600  # simulated seconds
DAY = 86_400


def simulate(arrivals: list[float], service: list[float], workers: int, *, look: float = 0.0) -> list[float]:
    """Seconds that each job waits, first come, first served.

    Args:
        arrivals: times, ascending, in seconds.
        service: seconds of a worker for each job.
        workers: how many.
        look: mean seconds until an idle worker looks at the queue again.
    """
    free = [0.0] * workers  # when each worker is next idle
    heapq.heapify(free)
    waits = []
    for arrived, seconds in zip(arrivals, service, strict=True):
        idle_since = heapq.heappop(free)
        start = max(idle_since, arrived) + (look if idle_since < arrived else 0.0)
        waits.append(start - arrived)
        heapq.heappush(free, start + seconds)
    return waits


def poisson(per_second: float, seconds: float, chance: random.Random) -> list[float]:
    """Arrival times of independent clients."""
    times, now = [], 0.0
    while (now := now + chance.expovariate(per_second)) < seconds:
        times.append(now)
    return times


def percentile(values: list[float], share: float) -> float:
    """The smallest value that `share` of them do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else 0.0


def gpus_needed(per_hour: float, video_seconds: float, p95: float, chance: random.Random) -> tuple[int, float]:
    """The fewest GPUs with which 95 of 100 jobs wait at most `p95` seconds, and what they then wait."""
    per_second = per_hour / 3600
    arrivals = poisson(per_second, min(HORIZON, 200_000 / per_second), chance)
    service = [video_seconds] * len(arrivals)
    least = max(1, math.floor(per_second * video_seconds))
    low, high = least, 2 * least + 8
    while low < high:
        middle = (low + high) // 2
        if percentile(simulate(arrivals, service, middle, look=POLL_SECONDS[1] / 2), 0.95) <= p95:
            high = middle
        else:
            low = middle + 1
    return low, percentile(simulate(arrivals, service, low, look=POLL_SECONDS[1] / 2), 0.95)


def capacity(options: argparse.Namespace) -> dict[str, Any]:
    """The answer for the load that is asked about, and for a million videos a day."""
    chance = random.Random(options.seed)
    gpus, wait = gpus_needed(options.per_hour, options.video_seconds, options.p95, chance)
    result: dict[str, Any] = {
        "per_hour": options.per_hour,
        "video_seconds": options.video_seconds,
        "gpus": gpus,
        "p95_wait": round(wait, 2),
        "million_a_day": _million(options.video_seconds, options.p95, chance),
    }
    if options.check:
        result["check"] = check(chance)
    return result


def _million(video_seconds: float, p95: float, chance: random.Random) -> dict[str, Any]:
    per_second = 1e6 / DAY
    gpus, wait = gpus_needed(1e6 / 24, video_seconds, p95, chance)
    return {
        "gpus": gpus,
        "p95_wait": round(wait, 2),
        "submits_per_s": round(per_second, 1),
        "claims_per_s": round(per_second, 1),
        "renewals_per_s": round(2 * min(gpus, per_second * video_seconds), 1),  # every half second while steps come
        "beats_per_s": round(gpus / 3, 1),
        "idle_looks_per_s": round(max(0.0, gpus - per_second * video_seconds) / POLL_SECONDS[1], 1),
        "connections": 3 * gpus,  # a worker's loop, its lease and its beat
    }


def check(chance: random.Random, *, per_second: float = 4.0, seconds: float = 20.0, workers: int = 2) -> dict[str, Any]:
    """The same arrivals through the simulation and through workers with the fake renderer, as threads."""
    arrivals = poisson(per_second, seconds, chance)
    with tempfile.TemporaryDirectory(prefix="videomaker-bench-", ignore_cleanup_errors=True) as folder:
        state = fake_state(Path(folder), fake_seconds=0.2)
        pool = [Worker(state, load_renderer(state.config, "cpu")) for _ in range(workers)]
        threads = [threading.Thread(target=worker.run) for worker in pool]
        for thread in threads:
            thread.start()
        start, ids = time.monotonic(), []
        for number, arrived in enumerate(arrivals):
            time.sleep(max(0.0, start + arrived - time.monotonic()))
            ids.append(put_job(state, number))
        while any(row.state in ("queued", "in_progress") for row in state.listing.get_many(ids).values()):
            time.sleep(0.2)
        for worker in pool:
            worker.stop(0)
        for thread in threads:
            thread.join()
        rows = [state.listing.get(id) for id in ids]
    real = [row.started - row.created for row in rows]
    came = [row.created - rows[0].created for row in rows]
    simulated = simulate(came, [row.finished - row.started for row in rows], workers, look=POLL_SECONDS[1] / 2)
    return {
        "jobs": len(rows),
        "workers": workers,
        "mean_wait": [round(sum(real) / len(real), 3), round(sum(simulated) / len(simulated), 3)],
        "p95_wait": [round(percentile(real, 0.95), 3), round(percentile(simulated, 0.95), 3)],
        "order": ["measured", "simulated from the measured arrivals and seconds"],
    }
