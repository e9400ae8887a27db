"""The same server on Ray Serve: `serve deploy` with `import_path: videomaker.serve.ray_app:build`.

Ray starts, watches, scales and replaces the processes. It holds no job: those are rows of the database.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any, cast

from fastapi import FastAPI
from ray import serve
from ray.serve import Application, Deployment

from videomaker.errors import InputError

from .app import create_app
from .config import ServeConfig, load_config
from .housekeeping import Housekeeper
from .loading import load_renderer
from .logs import configure_logs
from .model_files import localised
from .server import check_state
from .state import State
from .tracing import configure_tracing
from .worker import Worker

POLICY = "videomaker.serve.scaling:QueuedSeconds"
MARGIN_SECONDS = 15  # over the drain, until Ray kills a replica


@serve.deployment(name="Api", max_ongoing_requests=1000, graceful_shutdown_timeout_s=15)
@serve.ingress()
class Api:
    """The interface and the page; any replica answers any call.

    Args:
        config: settings of the server.
        workers: unused; by them Ray knows that they belong together.
    """

    def __init__(self, config: dict[str, Any], *workers: Any):
        self._state = State(localised(_resolved(config), facts_only=True))
        check_state(self._state)
        self._housekeeper = Housekeeper(self._state)
        self._housekeeper.start()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Ray asks for it once the constructor is done."""
        return create_app(self._state)

    def __del__(self) -> None:
        """Ray's notice that the replica ends, after its last answer."""
        if state := getattr(self, "_state", None):
            state.draining = True
            self._housekeeper.stop()


@serve.deployment(name="Worker", health_check_period_s=5, health_check_timeout_s=60)
class RayWorker:
    """The loop of one device, warm before Ray calls the replica healthy.

    Args:
        config: settings of the server; `only` says which of its models.
    """

    def __init__(self, config: dict[str, Any]):
        resolved = localised(_resolved(config).served_here[0])
        device = resolved.devices[0] if resolved.devices else "auto"  # Ray shows a replica its own devices alone
        self._drain_seconds = resolved.drain_seconds
        self._failure: BaseException | None = None
        self._worker = Worker(State(resolved), load_renderer(resolved, device))
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)
        self._thread.start()
        while not self._worker.ready:
            self.check_health()
            time.sleep(0.05)

    def _run(self) -> None:
        try:
            self._worker.run()
        except BaseException as error:  # told to whoever asks for the health
            self._failure = error
            raise

    def check_health(self) -> None:
        """Ray replaces a replica whose loop has ended.

        Raises:
            RuntimeError: with the reason.
        """
        if not self._thread.is_alive():
            raise RuntimeError(f"the worker's loop has ended: {self._failure!r}") from self._failure

    def pid(self) -> int:
        """Of the replica's process, for tests that kill it."""
        return os.getpid()

    def __del__(self) -> None:
        """Scaled down or updated: what is being made is finished within the drain, or given back."""
        if hasattr(self, "_thread"):
            self._worker.stop(self._drain_seconds)
            self._thread.join(self._drain_seconds + MARGIN_SECONDS / 2)


def _resolved(config: dict[str, Any]) -> ServeConfig:
    resolved = load_config(**config)
    configure_logs(resolved)
    configure_tracing(resolved.telemetry)
    return resolved


def build(args: dict[str, Any]) -> Application:
    """The application of a Serve configuration file.

    Args:
        args: `config`, settings of the server; `target_seconds` of the autoscaling; `max_workers`, `min_workers`.
            What the file says of the deployments `Api` and `Worker` goes before what is chosen here.

    Raises:
        InputError: settings that cannot be used, or a database or files that other machines cannot reach.
    """
    unknown = args.keys() - {"config", "target_seconds", "min_workers", "max_workers"}
    if unknown:
        raise InputError(f"args of the Ray application: {', '.join(sorted(unknown))} unknown; settings go under config")
    config = {**args.get("config", {}), "engine": "ray"}
    resolved = load_config(**config)
    if not resolved.database.startswith("postgresql"):
        raise InputError("on Ray the queue needs a database that all replicas reach: database = postgresql+psycopg://…")
    served = resolved.served_here
    names = ["Worker"] if len(served) == 1 else [f"Worker-{one.name}" for one in served]
    bound = [
        _workers(name, {**config, "only": [one.name]}, args, one.drain_seconds)
        for name, one in zip(names, served, strict=True)
    ]
    return cast("Deployment", Api).bind(config, *bound)


def _workers(name: str, config: dict[str, Any], args: dict[str, Any], drain_seconds: float) -> Application:
    """The deployment of one model, scaled by what waits for it."""
    policy = {"config": config, "target_seconds": float(args.get("target_seconds", 60))}
    scaling = {
        "min_replicas": int(args.get("min_workers", 0)),
        "max_replicas": int(args.get("max_workers", 8)),
        "upscale_delay_s": 5,
        "downscale_delay_s": 120,
        "policy": {"policy_function": POLICY, "policy_kwargs": policy},
    }
    deployment = cast("Deployment", RayWorker).options(
        name=name, autoscaling_config=scaling, graceful_shutdown_timeout_s=drain_seconds + MARGIN_SECONDS
    )
    return deployment.bind(config)
