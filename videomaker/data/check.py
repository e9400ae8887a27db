"""Checks of the files that a manifest names: before a run's first step, and in depth by `videomaker data check`."""

from __future__ import annotations

import collections
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from videomaker.digests import sha256
from videomaker.errors import InputError
from videomaker.model_files import check_tokenizer

from .errors import ClipError
from .inspection import find_problem, inspect_clip
from .journal import Journal
from .manifest import Clip, check_place, long_captions, parse_manifest, video_files, write_manifest

THREADS = 8  # FFmpeg works outside Python's lock, and network disks are slow to answer

Item = TypeVar("Item")
Result = TypeVar("Result")

logger = logging.getLogger(__name__)


def check_files(
    clips: Sequence[Clip],
    root: Path,
    *,
    refused: Mapping[str, ClipError] | None = None,
    allow_bad: bool = False,
    show: bool = True,
) -> None:
    """Reads the header of every video and picture.

    Args:
        clips: lines of the manifest in the folder `root`.
        root: the folder.
        refused: bad for other reasons, by id (see `journal.read_refusals`).
        allow_bad: only warn, as long as one clip is good.
        show: a progress bar, on a terminal.

    Raises:
        InputError: names the first bad clip and counts them by reason.
    """
    known = refused or {}
    found = map_files(lambda clip: known.get(clip.id) or find_problem(clip, root), clips, "checking clips", show=show)
    problems = [(clip, problem) for clip, problem in zip(clips, found, strict=True) if problem]
    if not problems:
        return
    counts = describe_counts(problem.reason for _, problem in problems)
    clip, problem = problems[0]
    message = f"{len(problems)} of {len(clips)} clips cannot be used ({counts}), first {clip.id!r}: {problem}"
    if not allow_bad or len(problems) == len(clips):
        raise InputError(
            f"{message}; drop them with `videomaker data check MANIFEST --out CLEAN`, or set data.bad_clips=skip"
        )
    logger.warning("%s; they are skipped", message)


@dataclass(frozen=True)
class CheckReport:
    """The usable clips of a manifest and what is wrong with the rest, as (where, reason, message)."""

    good: list[Clip]
    problems: list[tuple[str, str, str]]
    num_clips: int = 0  # lines of the manifest
    num_looked: int = 0  # clips decoded; fewer when only a sample was asked for
    variable_rate: int = 0  # clips without a constant frame rate, whose frames are chosen by time

    @property
    def counts(self) -> dict[str, int]:
        """The number of problems by reason, the most frequent first."""
        return dict(collections.Counter(reason for _, reason, _ in self.problems).most_common())


def check_manifest(path: Path, *, tokenizer: Any = None, max_tokens: int = 77, sample: int = 0) -> CheckReport:
    """Checks every line, decodes every file, and, with a tokenizer, counts the tokens of every caption.

    After an interruption the same call goes on: what is found is kept beside the manifest (see `Journal`), where a
    training finds it, too.

    Args:
        path: the manifest.
        tokenizer: of the text encoder.
        max_tokens: that fit it.
        sample: look at so many clips only, spread over the manifest the same way each time; 0: at all.

    Raises:
        InputError: `path` is not a readable text file.
    """
    good: list[Clip] = []
    parsed = list(parse_manifest(path))
    lines = [(number, clip) for number, clip in parsed if isinstance(clip, Clip)]
    problems = [(f"{path}:{number}", "bad line", text) for number, text in parsed if isinstance(text, str)]
    chosen = sorted(sorted(lines, key=lambda line: sha256(line[1].id))[: sample or None], key=lambda line: line[0])
    with Journal(path, keep=not sample) as journal:
        found = map_files(lambda line: journal.look(line[1], inspect_clip), chosen, "decoding clips")
    for (number, clip), verdict in zip(chosen, found, strict=True):
        problem = ClipError(verdict.reason, verdict.message) if verdict.reason else None
        problem = problem or _caption_problem(clip, tokenizer, max_tokens)
        if problem:
            problems.append((f"{path}:{number}", problem.reason, f"clip {clip.id!r}: {problem}"))
        else:
            good.append(clip)
    variable_rate = sum(verdict.variable_rate for verdict in found)
    return CheckReport(good, problems, num_clips=len(parsed), num_looked=len(chosen), variable_rate=variable_rate)


def load_tokenizer(folder: Path) -> Any:
    """The CLIP tokenizer in a folder. Raises `InputError` when there is none."""
    from transformers import CLIPTokenizer

    if not folder.is_dir():
        raise InputError(f"{folder} does not exist; give the folder `tokenizer` of a model in the diffusers format")
    check_tokenizer(folder)
    return CLIPTokenizer.from_pretrained(folder)


def check_clean_place(source: Path, out: Path) -> None:
    """Refuses a place for the usable clips of `source` where something would be lost, or paths would lead nowhere.

    Raises:
        InputError: `source` cannot be read; `out` is in another folder, is `source`, no manifest, or another's.
    """
    clips = [clip for _, clip in parse_manifest(source) if isinstance(clip, Clip)]
    if out.parent.resolve() != source.parent.resolve():
        raise InputError(f"paths in {source} are relative to its folder: put {out.name} into {source.parent}")
    check_place(out, source=source, videos=video_files(source, clips))


def write_clean(report: CheckReport, source: Path, out: Path) -> None:
    """Writes the usable clips to a manifest beside `source`, to whose folder their paths are relative.

    Raises:
        InputError: nothing is usable, or see `check_clean_place`.
    """
    if not report.good:
        raise InputError(f"{source} has no usable clip; {out} is not written")
    check_clean_place(source, out)
    write_manifest(out, report.good)


def map_files(
    function: Callable[[Item], Result], items: Sequence[Item], title: str, *, show: bool = True
) -> list[Result]:
    """Runs `function` over `items` in threads, in order, with a progress bar; Ctrl-C ends it at once."""
    pool = ThreadPoolExecutor(THREADS)
    bar = {"desc": title, "unit": "clip", "leave": False, "disable": None if show else True}
    try:
        return list(tqdm(pool.map(function, items), total=len(items), **bar))
    finally:
        pool.shutdown(cancel_futures=True)


def describe_counts(reasons: Iterable[str]) -> str:
    """Such as `too short: 3, broken: 1`, the most frequent first."""
    return ", ".join(f"{reason}: {count}" for reason, count in collections.Counter(reasons).most_common())


def _caption_problem(clip: Clip, tokenizer: Any, max_tokens: int) -> ClipError | None:
    long = long_captions(clip, tokenizer, max_tokens=max_tokens) if tokenizer else []
    return ClipError("long caption", f"{long[0][1]} tokens, {max_tokens} fit: {long[0][0][:40]!r}...") if long else None
