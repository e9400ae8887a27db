"""Videos sent to a server and fetched from it: a few, with a bar for each, or a file of thousands."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, Any

import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from videomaker.errors import InputError

from .terminal import console

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from videomaker.jobs.request import Job
    from videomaker.serve.bulk import Tally
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


def submit_file(
    file: Path,
    output: Path,
    defaults: dict[str, Any],
    connect: Callable[..., Client],
    *,
    at_once: int,
    overwrite: bool,
) -> None:
    """Has every line of a file made whose video is not there; a run that was cut off goes on where it was.

    Args:
        file: of jobs, as `read_lines` takes it.
        output: the folder of the results.
        defaults: options for lines that say nothing else.
        connect: makes the client, given `patient` and `connections`.
        at_once: jobs that are sent and not yet fetched.
        overwrite: whether what is there is made again.

    Raises:
        InputError: a line cannot be used (nothing is sent), the server cannot be reached, or videos failed.
    """
    from videomaker.files import check_writable
    from videomaker.serve.bulk import JOURNAL, Bulk, Journal
    from videomaker.serve.bulk_lines import read_lines

    jobs = read_lines(file, output, defaults)
    check_writable(output)
    pending = [job for job in jobs if overwrite or not job.path.exists()]
    journal = Journal(output / JOURNAL, anew=overwrite)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"), TimeElapsedColumn())
    with Progress(*columns, console=console(), disable=not console().is_terminal) as progress:
        task = progress.add_task(file.name, total=len(jobs), completed=len(jobs) - len(pending), state="")

        def show(tally: Tally) -> None:
            ended = len(jobs) - len(pending) + tally.made + len(tally.failed)
            state = f"{ended} of {len(jobs)}, {tally.sent} on the way, {len(tally.failed)} failed"
            progress.update(task, completed=ended, state=state)

        client = connect(patient=True, connections=2 * at_once)
        bulk = Bulk(client, journal, at_once=at_once, on_made=lambda path: print(path, flush=True))
        try:
            tally = bulk.run(pending, show)
        except KeyboardInterrupt:
            typer.echo("stopped; what was sent goes on at the server, and the same command fetches it", err=True)
            raise
    there = len(jobs) - len(pending)
    typer.echo(f"{tally.made} videos made, {there} were there, {len(tally.failed)} failed", err=True)
    if tally.failed:
        line, reason = min(tally.failed.items())
        raise InputError(f"{len(tally.failed)} of {len(jobs)} videos failed, the first in line {line}: {reason}")
