"""What the commands share on the terminal: messages, progress, and quiet libraries."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from rich.console import Console

from videomaker.jobs.quiet import quiet_libraries

if TYPE_CHECKING:
    from rich.table import Table

    from videomaker.jobs.prepare import Prepared
    from videomaker.jobs.request import Recipe


@cache
def console() -> Console:
    """The one console on stderr, shared so that messages pass above a progress bar."""
    return Console(stderr=True)


def show_messages(*, verbose: bool) -> None:
    """Sends log messages to the console."""
    from rich.logging import RichHandler

    handler = RichHandler(console=console(), show_time=False, show_path=False)
    logging.basicConfig(level="DEBUG" if verbose else "INFO", format="%(message)s", handlers=[handler], force=True)
    for library in ("alembic", "httpx", "httpx2", "PIL", "libav", "urllib3", "filelock"):
        logging.getLogger(library).setLevel("WARNING")


@contextmanager
def video_progress(num_videos: int, num_steps: int) -> Iterator[Callable[[int], None]]:
    """Shows a bar of denoising steps; yields the function that counts one, given the number of videos in it."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.fields[videos]} of {task.fields[num_videos]} videos"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} steps"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    hidden = num_videos == 0 or not console().is_terminal
    # What is printed meanwhile passes above the bar, unless it goes to a file or a pipe.
    with Progress(*columns, console=console(), redirect_stdout=sys.stdout.isatty(), disable=hidden) as progress:
        task = progress.add_task("", total=num_videos * num_steps, videos=0, num_videos=num_videos)

        def advance(count: int) -> None:
            steps = progress.tasks[task].completed + count
            progress.update(task, completed=steps, videos=int(steps // num_steps))

        yield advance


def prepare_model(recipe: Recipe) -> Prepared:
    """`videomaker.jobs.prepare.prepare` with a sign of life while the libraries and the model load."""
    with console().status("Loading the model"):
        quiet_libraries()
        from videomaker.jobs.prepare import prepare  # torch and diffusers take seconds

        return prepare(recipe)


def print_table(table: Table) -> None:
    """Prints a table of results on stdout."""
    Console().print(table)
