"""One command's work in parts: by hand with `--shard`, or as tasks of a Ray cluster with `--ray`.

Ray holds nothing: what a part makes are files that all machines see, and a part that was killed goes on from them.
"""

from __future__ import annotations

import functools
import importlib
import io
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from videomaker.errors import InputError, first_line

if TYPE_CHECKING:
    from videomaker.data.sharing import Shard

PANEL = "Many machines"
MAX_RETRIES = 3  # of a part whose process or machine died
WHOLE = "1/1"
REACHED_WITHIN = 10  # seconds, for an address to take a connection


@dataclass(frozen=True)
class Spread:
    """How the work is shared."""

    shard: Annotated[
        str,
        typer.Option("--shard", help="i/n: the i-th of n equal parts, to be run side by side.", rich_help_panel=PANEL),
    ] = WHOLE
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="ADDRESS",
            help="Spread over a Ray cluster; auto: this machine's.",
            rich_help_panel=PANEL,
        ),
    ] = None
    ray_tasks: Annotated[
        int | None,
        typer.Option(
            "--ray-tasks",
            min=1,
            help="Parts to spread.",
            show_default="one for each GPU, or each CPU without any",
            rich_help_panel=PANEL,
        ),
    ] = None

    def part(self) -> Shard:
        """The part to do here.

        Raises:
            InputError: it is not understood.
        """
        from videomaker.data.sharing import parse_shard

        return parse_shard(self.shard)


def over_ray(command: Callable[..., None]) -> Callable[..., None]:
    """The command, outermost of its wrappers, whose parts become tasks of a cluster where `--ray` names one.

    Then the whole is done once more, as a task: it finds the parts' files, makes what is missing, and reports.
    """

    @functools.wraps(command)
    def run(**given: Any) -> None:
        address, tasks, shard = given.pop("ray"), given.pop("ray_tasks"), given["shard"]
        if address is None:
            if tasks is not None:
                raise InputError(f"--ray-tasks {tasks} needs --ray ADDRESS: say which cluster")
            command(**given, ray=None, ray_tasks=None)
            return
        if shard != WHOLE:
            raise InputError(f"--shard {shard} is one part, --ray makes the parts itself: leave one of them out")
        given |= {"ray": None, "ray_tasks": None}
        typer.echo(_spread(address, tasks, f"{command.__module__}:{command.__name__}", given), nl=False)

    return run


def _spread(address: str, tasks: int | None, name: str, given: dict[str, Any]) -> str:
    """Runs every part and then the whole on the cluster: what the whole has printed."""
    ray = _connect(address)
    try:
        resources = ray.cluster_resources()
        kind = "GPU" if resources.get("GPU") else "CPU"
        tasks = tasks or max(1, int(resources.get(kind, 1)))
        needs = {"num_gpus": 1, "num_cpus": 1} if kind == "GPU" else {"num_cpus": 1}
        task = ray.remote(run_part).options(**needs, max_retries=MAX_RETRIES, name=name)
        parts = [f"{number + 1}/{tasks}" for number in range(tasks)] if tasks > 1 else []
        typer.echo(f"{tasks} tasks on {resources.get(kind, 0):g} {kind}s of the Ray cluster", err=True)
        _wait(ray, [task.remote(name, {**given, "shard": part}, os.getcwd()) for part in parts])
        return ray.get(task.remote(name, given, os.getcwd()))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, (InputError, OSError)):
            raise error.cause from None  # its one line, without the other process's stack
        raise
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        reason = first_line(error)
        raise InputError(f"a part was killed again and again ({reason}); the same command goes on with it") from error
    finally:
        ray.shutdown()


def _connect(address: str) -> Any:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise InputError("--ray needs Ray: pip install -e '.[ray]'") from error
    _check_reachable(os.environ.get("RAY_ADDRESS", address) if address == "auto" else address)
    try:
        ray.init(address=address, configure_logging=False)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        reason = first_line(error)
        raise InputError(f"--ray {address}: no cluster answers ({reason}); start one with ray start --head") from error
    return ray


def _check_reachable(address: str) -> None:
    """Refuses an address at which nothing listens; Ray itself asks it for minutes.

    Args:
        address: `HOST:PORT` or `ray://HOST:PORT`; what names no port is left to Ray.

    Raises:
        InputError: nothing there takes a connection.
    """
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not (separator and port.isdecimal()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACHED_WITHIN).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise InputError(f"--ray {address}: nothing answers there ({error}); give a cluster's address") from error


def _wait(ray: Any, parts: Sequence[Any]) -> None:
    """Until all are done; the first that fails ends it."""
    left, total = list(parts), len(parts)
    while left:
        done, left = ray.wait(left)
        ray.get(done)
        typer.echo(f"{total - len(left)} of {total} parts are done", err=True)


def run_part(name: str, given: dict[str, Any], folder: str) -> str:
    """The task: a command of this package in a folder that all machines see; returns what it prints.

    Raises:
        InputError: this machine does not have the folder, or the command's own.
    """
    try:
        os.chdir(folder)
    except OSError as error:
        raise InputError(f"a machine of the cluster has no {folder} ({error.strerror}): share the folder") from error
    module, _, function = name.partition(":")
    with redirect_stdout(io.StringIO()) as printed:
        getattr(importlib.import_module(module), function)(**given)
    return printed.getvalue()
