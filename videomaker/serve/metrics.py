"""What Prometheus reads: requests of this process, and from the database the queue and what the workers tell.

To add a metric of a worker: a line in `WorkerStats` where it is counted, a family in `_Workers.collect`.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Iterator
from typing import Any, Protocol

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from .registry import Registry
from .store import Store

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000)


class ProcessMetrics:
    """What this process counts: requests that it answered, leases that it found lapsed."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self._requests = Counter("videomaker_http_requests", "Answered requests", labels, registry=self.registry)
        self._seconds = Histogram(
            "videomaker_http_request_seconds",
            "Until an answer was sent whole",
            ("method", "route"),
            buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 60),
            registry=self.registry,
        )

        self._lost = Counter("videomaker_leases_lost", "Runs whose worker died or hung", registry=self.registry)

    def leases_lost(self, count: int) -> None:
        """Runs that ended without a word; each is made again, or failed as `worker_lost`."""
        self._lost.inc(count)

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """One answer."""
        method = method if method in ("GET", "HEAD", "POST", "DELETE", "OPTIONS") else "other"
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)


class WorkerStats:
    """What a worker counts since it started; it travels in its row of `workers`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._phases: dict[tuple[str, str], list[float]] = {}  # a count for each of SECONDS, one for more, the sum
        self._failures: dict[str, int] = {}
        self._batches, self._fill = 0, 0.0

    def observe(self, bucket: str, phase: str, seconds: float) -> None:
        """A video's phase: `wait`, `render`, `encode` or `store`."""
        with self._lock:
            counts = self._phases.setdefault((bucket, phase), [0.0] * (len(SECONDS) + 2))
            counts[bisect.bisect_left(SECONDS, seconds)] += 1
            counts[-1] += seconds

    def fill(self, share: float) -> None:
        """A batch: the share of its places that jobs took."""
        with self._lock:
            self._batches, self._fill = self._batches + 1, self._fill + share

    def fail(self, code: str) -> None:
        """A video that failed."""
        with self._lock:
            self._failures[code] = self._failures.get(code, 0) + 1

    def as_json(self) -> dict[str, Any]:
        """All counts."""
        with self._lock:
            return {
                "phases": [[*key, list(counts)] for key, counts in self._phases.items()],
                "failures": dict(self._failures),
                "batches": self._batches,
                "fill": self._fill,
                "memory": _gpu_memory(),
            }


def _gpu_memory() -> list[tuple[str, int, int]]:
    """Name of each NVIDIA GPU, bytes used and in all; empty without one that tells."""
    try:
        import pynvml  # late: optional, and a driver is asked

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        memory = [pynvml.nvmlDeviceGetMemoryInfo(handle) for handle in handles]
    except Exception:  # no package, driver or GPU, or one that does not tell (a MIG slice): each its own error
        return []
    return [(f"cuda:{index}", int(info.used), int(info.total)) for index, info in enumerate(memory)]


class Sources(Protocol):
    """What is asked for figures: the `State` of a process."""

    process: ProcessMetrics

    @property
    def registry(self) -> Registry:
        """The workers."""

    @property
    def store(self) -> Store:
        """Where the files lie."""


def exposition(state: Sources) -> bytes:
    """The text of /metrics."""
    registry = CollectorRegistry()
    registry.register(_Queue(state))
    registry.register(_Workers(state))
    return generate_latest(state.process.registry) + generate_latest(registry)


class _Queue:
    def __init__(self, state: Sources):
        self.state = state

    def collect(self) -> Iterator[Metric]:
        """Depth, age and work of the queue by bucket."""
        labels = ("model", "bucket")
        depth = GaugeMetricFamily("videomaker_queue_depth", "Videos that wait", labels=labels)
        running = GaugeMetricFamily("videomaker_running", "Videos that are being made", labels=labels)
        age = GaugeMetricFamily("videomaker_queue_oldest_seconds", "Age of the oldest that waits", labels=labels)
        work = GaugeMetricFamily("videomaker_queue_seconds", "Expected work of those that wait", labels=labels)
        for row in self.state.registry.queue_figures():
            where = (row.model, row.bucket)
            depth.add_metric(where, row.queued)
            running.add_metric(where, row.running)
            age.add_metric(where, row.oldest or 0.0)
            work.add_metric(where, row.seconds)
        yield from (depth, running, age, work)
        if (free := self.state.store.free_bytes()) is not None:
            yield GaugeMetricFamily("videomaker_disk_free_bytes", "Of the disk with the files", value=free)


class _Workers:
    def __init__(self, state: Sources):
        self.state = state

    def collect(self) -> Iterator[Metric]:
        """What the workers that live tell about themselves."""
        labels = ("worker", "device")
        ready = GaugeMetricFamily("videomaker_worker_ready", "1 when warm", labels=labels)
        phases = HistogramMetricFamily(
            "videomaker_video_seconds", "Of a video, by phase", labels=("worker", "bucket", "phase")
        )
        failures = CounterMetricFamily("videomaker_failures", "Videos that failed", labels=("worker", "code"))
        batches = CounterMetricFamily("videomaker_batches", "Passes through the model", labels=labels)
        fill = CounterMetricFamily("videomaker_batch_fill", "Sum of the filled share of batches", labels=labels)
        used = GaugeMetricFamily("videomaker_gpu_memory_used_bytes", "By the driver", labels=("host", "gpu"))
        total = GaugeMetricFamily("videomaker_gpu_memory_total_bytes", "By the driver", labels=("host", "gpu"))
        hosts = {}
        for row in self.state.registry.alive():
            where, stats = (row.id, row.device), row.stats
            ready.add_metric(where, float(row.ready))
            for bucket, phase, counts in stats["phases"]:
                phases.add_metric((row.id, bucket, phase), _cumulative(counts[:-1]), counts[-1])
            for code, count in stats["failures"].items():
                failures.add_metric((row.id, code), count)
            batches.add_metric(where, stats["batches"])
            fill.add_metric(where, stats["fill"])
            hosts[row.host] = stats["memory"]
        for host, memory in hosts.items():
            for gpu, in_use, in_all in memory:
                used.add_metric((host, gpu), in_use)
                total.add_metric((host, gpu), in_all)
        yield from (ready, phases, failures, batches, fill, used, total)


def _cumulative(counts: list[float]) -> list[tuple[str, float]]:
    bounds = [*map(str, SECONDS), "+Inf"]
    return [(bound, sum(counts[: index + 1])) for index, bound in enumerate(bounds)]
