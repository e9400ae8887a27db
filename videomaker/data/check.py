"""Checks of the files that a manifest names: before a run's first step, and in depth by `videomaker data check`."""

from __future__ import annotations

import collections
import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from PIL import ExifTags, Image
from tqdm import tqdm

from videomaker.errors import InputError

from .manifest import Clip, long_captions, parse_manifest, write_manifest
from .reference import crop_to_box, mask_on_white
from .shards import clip_file, load_image, load_mask
from .video import ClipError, open_video, probe

THREADS = 8  # FFmpeg works outside Python's lock, and network disks are slow to answer

Item = TypeVar("Item")
Result = TypeVar("Result")

logger = logging.getLogger(__name__)


def check_files(clips: Sequence[Clip], root: Path, *, allow_bad: bool = False, show: bool = True) -> None:
    """Reads the header of every video and picture.

    Args:
        clips: lines of the manifest in the folder `root`.
        root: the folder.
        allow_bad: only warn, as long as one clip is good.
        show: a progress bar, on a terminal.

    Raises:
        InputError: names the first bad clip and counts them by reason.
    """
    found = map_files(lambda clip: find_problem(clip, root), clips, "checking clips", show=show)
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


def find_problem(clip: Clip, root: Path) -> ClipError | None:
    """What makes a clip unusable as far as headers tell. Clips of shards were checked when those were written."""
    try:
        if clip.shard:
            _require_file(root / clip.shard)
            return None
        info = probe(root / clip.video)
        for ref in clip.refs:
            size = _picture_size(root / ref.image) if ref.image else (info.width, info.height)
            if not ref.image and ref.frame >= info.num_frames:
                raise ClipError("bad reference", f"frame {ref.frame} of a video of {info.num_frames} frames")
            if ref.mask and _picture_size(root / ref.mask) != size:
                raise ClipError("bad reference", f"the mask {ref.mask} and its picture have different sizes")
    except ClipError as error:
        return error
    return None


def inspect_clip(clip: Clip, root: Path) -> ClipError | None:
    """As `find_problem`, and decodes the last frame and every reference with its mask and box."""
    try:
        with open_video(clip_file(root, clip, clip.video)) as video:
            last = max(video.info().num_frames, clip.num_frames or 0) - 1
            video.read([last])
            for ref in clip.refs:
                image = load_image(root, clip, ref.image) if ref.image else video.read([ref.frame])[0]
                if ref.mask:
                    _check_mask(image, load_mask(root, clip, ref.mask))
                if ref.box:
                    crop_to_box(image, ref.box)
    except ClipError as error:
        return error
    except (ValueError, OverflowError, AttributeError) as error:  # a box of infinity; a codec without a decoder
        return ClipError("bad reference", str(error))
    return None


def _check_mask(image: Image.Image, mask: Image.Image) -> None:
    """Refuses a mask of another size, and one that leaves nothing."""
    mask_on_white(image, mask)
    if mask.getbbox() is None:
        raise ClipError("empty mask", "it is black everywhere: the reference would be all white")


@dataclass(frozen=True)
class CheckReport:
    """The usable clips of a manifest and what is wrong with the rest, as (where, reason, message)."""

    good: list[Clip]
    problems: list[tuple[str, str, str]]

    @property
    def counts(self) -> dict[str, int]:
        """The number of problems by reason, the most frequent first."""
        return dict(collections.Counter(reason for _, reason, _ in self.problems).most_common())


def check_manifest(path: Path, *, tokenizer: Any = None, max_tokens: int = 77) -> CheckReport:
    """Checks every line, file, and, with a tokenizer, caption of a manifest.

    Raises:
        InputError: `path` is not a readable text file.
    """
    good: list[Clip] = []
    problems: list[tuple[str, str, str]] = []
    parsed = list(parse_manifest(path))
    lines = [(number, clip) for number, clip in parsed if isinstance(clip, Clip)]
    problems += [(f"{path}:{number}", "bad line", text) for number, text in parsed if isinstance(text, str)]
    found = map_files(lambda line: inspect_clip(line[1], path.parent), lines, "checking clips")
    for (number, clip), problem in zip(lines, found, strict=True):
        problem = problem or _caption_problem(clip, tokenizer, max_tokens)
        if problem:
            problems.append((f"{path}:{number}", problem.reason, f"clip {clip.id!r}: {problem}"))
        else:
            good.append(clip)
    return CheckReport(good, problems)


def load_tokenizer(folder: Path) -> Any:
    """The CLIP tokenizer in a folder. Raises `InputError` when there is none."""
    from transformers import CLIPTokenizer

    if not folder.is_dir():
        raise InputError(f"{folder} does not exist; give the folder `tokenizer` of a model in the diffusers format")
    return CLIPTokenizer.from_pretrained(folder)


def write_clean(report: CheckReport, source: Path, out: Path) -> None:
    """Writes the usable clips to a manifest beside `source`, to whose folder their paths are relative.

    Raises:
        InputError: nothing is usable, or `out` is in another folder.
    """
    if not report.good:
        raise InputError(f"{source} has no usable clip; {out} is not written")
    if out.parent.resolve() != source.parent.resolve():
        raise InputError(f"paths in {source} are relative to its folder: put {out.name} into {source.parent}")
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


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise ClipError("missing", str(path))


def _picture_size(path: Path) -> tuple[int, int]:
    """Width and height as the header tells, the right way up."""
    _require_file(path)
    try:
        with Image.open(path) as image:
            on_its_side = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            return image.size[::-1] if on_its_side else image.size
    except OSError as error:
        raise ClipError("bad reference", str(error)) from error


def _caption_problem(clip: Clip, tokenizer: Any, max_tokens: int) -> ClipError | None:
    long = long_captions(clip, tokenizer, max_tokens=max_tokens) if tokenizer else []
    return ClipError("long caption", f"{long[0][1]} tokens, {max_tokens} fit: {long[0][0][:40]!r}...") if long else None
