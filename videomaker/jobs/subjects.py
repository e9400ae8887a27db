"""The pictures of a request, highlighted where that is asked for, and a word of warning where it should have been."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from videomaker.data.subject import (
    ADVICE,
    Highlight,
    border_is_plain,
    check_models,
    highlight_picture,
    open_finder,
    write_highlighted,
)
from videomaker.errors import InputError
from videomaker.media import load_reference

from .request import Job
from .resolved import ResolvedSettings

logger = logging.getLogger(__name__)


def check_highlight(jobs: Sequence[Job], highlight: Highlight, models: Path | None) -> None:
    """Refuses what can be told without looking for a word: before a model loads.

    Raises:
        InputError: a mask or a box does not fit its picture, or the networks that look for a word are missing.
    """
    pictures = _pictures(jobs)
    if highlight.word:
        check_models(models)
        return
    if len(pictures) > 1:
        raise InputError(f"a mask or a box is that of one picture, and {len(pictures)} are given: one at a time")
    highlight_picture(load_reference(pictures[0]), highlight, height=1, width=1)


def _pictures(jobs: Sequence[Job]) -> list[Path]:
    return list(dict.fromkeys(path for job in jobs for path in job.references))


def highlight_jobs(
    jobs: Sequence[Job],
    highlight: Highlight,
    settings: ResolvedSettings,
    *,
    models: Path | None = None,
    device: str = "cpu",
) -> list[Job]:
    """The jobs with highlighted pictures, which are kept beside the results; the records name them.

    Args:
        jobs: of `plan_jobs`.
        highlight: how the subject is found; a mask or a box is that of one picture.
        settings: with the videos' size.
        models: folder of `grounding-dino/` and `sam/`, for a word.
        device: of torch.

    Raises:
        InputError: see `check_highlight`; or the word finds no subject. Nothing was written.
    """
    check_highlight(jobs, highlight, models)
    pictures = _pictures(jobs)
    finder = open_finder(models, device=device) if highlight.word else None
    size = {"height": settings.height, "width": settings.width}
    used = {path: write_highlighted(path, jobs[0].path.parent, highlight, finder=finder, **size) for path in pictures}
    return [replace(job, references=tuple(used[path] for path in job.references)) for job in jobs]


def warn_of_backgrounds(pictures: Iterable[Path]) -> None:
    """Says of every picture whose border is not plain that the method was trained on subjects on white."""
    for path in dict.fromkeys(pictures):
        if not border_is_plain(load_reference(path)):
            logger.warning("the border of %s is not plain: %s", path, ADVICE)
