"""The one data layout of training: a manifest, one JSON object per line, paths relative to the manifest's folder."""

from __future__ import annotations

import collections
import difflib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    model_validator,
)

from videomaker.errors import InputError
from videomaker.files import atomic_path, check_file_name

Box = tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]
Index = Annotated[int, Field(ge=0, le=10**9)]  # of frames; a year of video has about as many
Side = Annotated[int, Field(gt=0, le=10**6)]
MAX_RATE = 10**6  # frames a second, beyond which no camera records a clip that somebody trains on
Rate = Annotated[FiniteFloat, Field(gt=0, le=MAX_RATE)]
Text = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]+$")]


class Reference(BaseModel):
    """A picture of the subject: an image file, or a frame of the clip itself."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    image: Text | None = None
    mask: Text | None = None  # same size as the image or frame; 0 outside the subject
    box: Annotated[tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat], Field(strict=False)] | None = (
        None  # x1, y1, x2, y2 in pixels
    )
    frame: Index | None = None  # index in the clip; used when there is no image

    @model_validator(mode="after")
    def _has_a_source(self) -> Reference:
        if self.image is None and self.frame is None:
            raise ValueError("a reference needs an 'image' or a 'frame'")
        if self.box is not None and not (self.box[0] < self.box[2] and self.box[1] < self.box[3]):
            raise ValueError(f"box {list(self.box)} is empty; it should be [x1, y1, x2, y2]")
        return self


class Clip(BaseModel):
    """A line of the manifest. Only `video` and `captions` (or `caption`) are required."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: Text  # default: the video's name without its suffix
    video: Text
    captions: Annotated[tuple[Text, ...], Field(min_length=1, strict=False)]
    category: str | None = None
    subject_phrase: str | None = None
    num_frames: Index | None = None
    fps: Rate | None = None
    width: Side | None = None
    height: Side | None = None
    refs: Annotated[tuple[Reference, ...], Field(strict=False)] = ()
    split: Text = "train"
    shard: Text | None = None  # a tar file of which the paths above are members

    @model_validator(mode="before")
    @classmethod
    def _fill_shorthands(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        filled = {"id": Path(str(fields.get("video"))).stem, **fields}
        if "captions" not in filled and isinstance(filled.get("caption"), str):
            filled["captions"] = [filled.pop("caption")]
        return filled


def parse_manifest(path: str | os.PathLike) -> Iterator[tuple[int, Clip | str]]:
    """Yields (line number, clip) for every good line and (line number, what is wrong) for every bad one.

    Raises:
        InputError: `path` is not a readable text file.
    """
    seen: dict[str, int] = {}
    if Path(path).exists() and not Path(path).is_file():  # a pipe or a device would be read without end
        raise InputError(f"{path} is not a regular file: give a manifest (JSON Lines, UTF-8)")
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, _parse_line(line, number, seen)
    except FileNotFoundError:
        raise InputError(f"no manifest at {path}; `videomaker data index` makes one") from None
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"cannot read {path} as a manifest (JSON Lines, UTF-8): {error}") from None


def read_manifest(path: str | os.PathLike, *, split: str = "") -> list[Clip]:
    """Reads the clips of one split, or of all splits when `split` is empty.

    Raises:
        InputError: a line is wrong (file, line number, field and reason), or no line is left.
    """
    clips: list[Clip] = []
    errors: list[str] = []
    for number, parsed in parse_manifest(path):
        if isinstance(parsed, str):
            errors.append(f"{path}:{number}: {parsed}")
        else:
            clips.append(parsed)
    if errors:
        more = f" (and {len(errors) - 1} more; `videomaker data check {path}` lists them)" if errors[1:] else ""
        raise InputError(errors[0] + more)
    if not clips:
        raise InputError(f"the manifest {path} is empty; write one JSON object per line")
    chosen = [clip for clip in clips if split in ("", clip.split)]
    if not chosen:
        present = ", ".join(sorted({clip.split for clip in clips}))
        raise InputError(f"{path} has no clip of split {split!r}; its splits are: {present}")
    return chosen


def check_place(path: Path, *, source: Path | None = None, videos: Iterable[Path] | None = None) -> None:
    """Refuses to write a manifest over what is not to be lost: to be called before the work.

    Args:
        path: of the manifest.
        source: the manifest that it is made from, which stays.
        videos: the files (videos or shards) that it is made from; a manifest of others that are there stays.

    Raises:
        InputError: with the reason; also where something lies that is no manifest.
    """
    if source is not None and path.exists() and path.samefile(source):
        raise InputError(f"{path} is the manifest that is read, which stays as it is: give --out another name")
    check_file_name(path)
    if not path.exists() or not path.stat().st_size:
        return
    try:
        first = next(iter(parse_manifest(path)), None)
    except InputError:
        first = None
    if first is None or isinstance(first[1], str):
        raise InputError(f"{path} is there and is no manifest: give another --out")
    if videos is not None:
        _check_lost(path, {os.path.normpath(video) for video in videos})


def video_files(path: Path, clips: Iterable[Clip]) -> Iterator[Path]:
    """The file of each clip of the manifest `path`: its video or the shard that holds it."""
    root = path.parent.resolve()
    return (root / (clip.shard or clip.video) for clip in clips)


def _check_lost(path: Path, videos: set[str]) -> None:
    clips = (clip for _, clip in parse_manifest(path) if isinstance(clip, Clip))
    for file in video_files(path, clips):
        if os.path.normpath(file) not in videos and file.exists():
            raise InputError(f"{path} is a manifest of other clips, such as {file.name}: give another --out")


def write_manifest(path: str | os.PathLike, clips: Iterable[Clip]) -> None:
    """Writes a manifest, complete or not at all.

    Raises:
        InputError: see `check_place`.
    """
    check_place(Path(path))
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(clip.model_dump_json(exclude_defaults=True) + "\n" for clip in clips)


def splits(path: str | os.PathLike) -> dict[str, int]:
    """The number of clips of each split."""
    return dict(collections.Counter(clip.split for clip in read_manifest(path)))


def check_captions(clips: Iterable[Clip], tokenizer: Any, *, max_tokens: int = 77) -> None:
    """Refuses captions that the text encoder would cut. `max_tokens` counts the start and end tokens.

    Raises:
        InputError: names the first such caption and says how many there are.
    """
    long = [(clip.id, *found) for clip in clips for found in long_captions(clip, tokenizer, max_tokens=max_tokens)]
    if long:
        clip_id, caption, count = long[0]
        raise InputError(
            f"{len(long)} captions are longer than {max_tokens} tokens, first that of clip {clip_id!r} "
            f"({count} tokens: {caption[:40]!r}...); shorten them or set data.long_captions=truncate"
        )


def long_captions(clip: Clip, tokenizer: Any, *, max_tokens: int = 77) -> list[tuple[str, int]]:
    """The clip's captions of more than `max_tokens` tokens, and how many each has."""
    tokens = tokenizer(list(clip.captions), verbose=False).input_ids  # verbose: a warning for every long one
    counts = zip(clip.captions, map(len, tokens), strict=True)
    return [(caption, count) for caption, count in counts if count > max_tokens]


def _parse_line(line: str, number: int, seen: dict[str, int]) -> Clip | str:
    try:
        clip = Clip.model_validate_json(line)
    except ValidationError as error:
        return _describe(error)
    if clip.id in seen:
        return f"id {clip.id!r} is already that of line {seen[clip.id]}; ids must be unique"
    seen[clip.id] = number
    return clip


def _describe(error: ValidationError) -> str:
    """One line for the first problem of a line; pydantic's own text spans several."""
    problem = error.errors(include_url=False)[0]
    if problem["type"] == "json_invalid":
        return problem["msg"]
    field = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        known = (Reference if "refs" in problem["loc"] else Clip).model_fields
        nearest = difflib.get_close_matches(field.rpartition(".")[2], known, n=1)
        return f"unknown field {field!r}" + (f", did you mean {nearest[0]!r}?" if nearest else "")
    message = problem["msg"].removeprefix("Value error, ")
    shown = shorten(repr(problem["input"]), 60, placeholder=" ...")
    return f"{field}: {message}, got {shown}" if field else message
