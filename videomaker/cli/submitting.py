"""Videos sent to a server and fetched from it, with a bar for each that is on its way."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, Any

import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from videomaker.errors import InputError

from .terminal import console

if TYPE_CHECKING:
    from pathlib import Path

    from videomaker.jobs.request import Job
    from videomaker.serve.client import Client

AT_ONCE = 8  # videos that are followed at the same time


def submit_jobs(
    client: Client, jobs: list[Job], fields: dict[str, Any], *, overwrite: bool, mask: Path | None = None
) -> None:
    """Has every job made whose video is not there, and fetches video and record.

    Raises:
        InputError: the server refuses one, or some failed; the others are there.
    """
    pending = [job for job in jobs if overwrite or not job.path.exists()]
    if len(pending) < len(jobs):
        there = len(jobs) - len(pending)
        typer.echo(f"{there} of {len(jobs)} videos are there already; --overwrite makes them again", err=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"), TimeElapsedColumn())
    failed: list[str] = []
    with Progress(*columns, console=console(), disable=not console().is_terminal) as progress:
        errand = _Errand(client, fields, progress, mask)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            futures = [pool.submit(errand.run, job) for job in pending]
            try:
                for future in as_completed(futures):
                    if error := future.result():
                        failed.append(error)
            except BaseException:  # Ctrl-C, or a refusal: nobody waits for the rest
                pool.shutdown(wait=False, cancel_futures=True)
                errand.cancel()
                raise
    if failed:
        raise InputError(f"{len(failed)} of {len(pending)} videos failed: {failed[0]}")


class _Errand:
    """Sends a job, follows it, fetches its files; knows what is on its way."""

    def __init__(self, client: Client, fields: dict[str, Any], progress: Progress, mask: Path | None):
        self._client, self._fields, self._progress, self._mask = client, fields, progress, mask
        self._on_the_way: set[str] = set()
        self._lock = threading.Lock()

    def run(self, job: Job) -> str | None:
        """Why the video failed; None when it is there."""
        task = self._progress.add_task(job.path.name, total=None, state="sending")
        fields = {**self._fields, "prompt": job.prompt, "seed": job.seed}
        video = self._client.create(list(job.references), fields, self._mask)
        with self._lock:
            self._on_the_way.add(video["id"])
        video = self._client.follow(video["id"], lambda now: self._show(task, now))
        with self._lock:
            self._on_the_way.discard(video["id"])
        self._progress.remove_task(task)
        if video["status"] == "failed":
            return f"{job.path.name}: {video['error']['message']}"
        self._client.download(video["id"], "record", job.path.with_suffix(".json"))
        self._client.download(video["id"], "video", job.path)
        print(job.path, flush=True)  # typer.echo would write into the bars
        return None

    def _show(self, task: TaskID, video: dict[str, Any]) -> None:
        waits = video["queue_position"]
        state = video["status"].replace("_", " ") if waits is None else f"{waits} before it"
        self._progress.update(task, total=video["steps"], completed=video["step"], state=state)

    def cancel(self) -> None:
        """Ends what is on its way."""
        with self._lock:
            ids = list(self._on_the_way)
        for id in ids:
            self._client.cancel(id)
