"""The pictures of a request, highlighted where that is asked for, and a word of warning where it should have been."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from videomaker.data.subject import ADVICE, Highlight, border_is_plain, open_finder, write_highlighted
from videomaker.errors import InputError
from videomaker.media import load_reference

from .request import Job
from .resolved import ResolvedSettings

logger = logging.getLogger(__name__)


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
        InputError: a picture cannot be highlighted so; nothing was written.
    """
    pictures = list(dict.fromkeys(path for job in jobs for path in job.references))
    if (highlight.mask is not None or highlight.box is not None) and len(pictures) > 1:
        raise InputError(f"a mask or a box is that of one picture, and {len(pictures)} are given: one at a time")
    finder = None
    if highlight.word and highlight.mask is None and highlight.box is None:
        finder = open_finder(models, device=device)
    size = {"height": settings.height, "width": settings.width}
    used = {path: write_highlighted(path, jobs[0].path.parent, highlight, finder=finder, **size) for path in pictures}
    return [replace(job, references=tuple(used[path] for path in job.references)) for job in jobs]


def warn_of_backgrounds(pictures: Iterable[Path]) -> None:
    """Says of every picture whose border is not plain that the method was trained on subjects on white."""
    for path in dict.fromkeys(pictures):
        if not border_is_plain(load_reference(path)):
            logger.warning("the border of %s is not plain: %s", path, ADVICE)
