"""Where results lie: checked before the work, so that nothing of the user's is lost and nothing computed is.

Light on purpose: these checks are made before any heavy library loads.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

from videomaker.errors import InputError
from videomaker.files import check_file_name, check_replaceable, check_writable

from .request import Format, Job

MAX_RECORD_BYTES = 16 * 2**20  # a record of a batch of thousands is smaller
_FRAME = re.compile(r"\d{4,}\.png")


def record_path(video: Path) -> Path:
    """Where the record of a video (or folder of frames) lies."""
    return video.with_suffix(".json")


def sheet_path(output: Path) -> Path:
    """Where the contact sheet of one video, or of a folder of videos, lies."""
    one_file = output.suffix.lower() in (".mp4", ".gif")
    return output.with_suffix(".sheet.png") if one_file else output / "contact-sheet.png"


def is_frames_folder(folder: Path) -> bool:
    """Whether a folder holds frames as they are written, and nothing else."""
    return all(path.is_file() and _FRAME.fullmatch(path.name) for path in folder.iterdir())


def check_places(
    jobs: Sequence[Job],
    file_format: Format,
    *,
    sheet: Path | None = None,
    inputs: Iterable[Path] = (),
    fetched: bool = False,
) -> None:
    """Refuses results that could not be written, or that would take the place of something else.

    Args:
        jobs: what is to be made.
        file_format: of the videos.
        sheet: the contact sheet, if one is asked for.
        inputs: files that the user gave: no result may replace them.
        fetched: from a server, whose records bear its own names of the videos.

    Raises:
        InputError: with the first reason.
    """
    given = [path for path in inputs if path.exists()]
    for job in jobs:
        _check_place(job.path, file_format, fetched)
        for path in (job.path, record_path(job.path)):
            _check_no_input(path, given)
    for folder in {job.path.parent for job in jobs}:
        check_writable(folder)
    if sheet is not None:
        check_file_name(sheet)
        _check_no_input(sheet, given)
        if sheet.exists() and not is_contact_sheet(sheet):
            raise InputError(f"{sheet} is there and is no contact sheet: move it, or leave out --contact-sheet")


def check_references(jobs: Iterable[Job]) -> None:
    """Reads every picture once, so that none fails after the first video.

    Raises:
        InputError: one cannot be read.
    """
    from videomaker.pictures import load_reference  # numpy and Pillow

    for path in dict.fromkeys(path for job in jobs for path in job.references):
        load_reference(path)


def _check_place(path: Path, file_format: Format, fetched: bool) -> None:
    if file_format == "frames":
        if len(path.name.encode()) > 255:
            raise InputError(f"output {path.name[:40]}… is too long a name: give a shorter one")
        check_replaceable(path, is_frames_folder)
    else:
        check_file_name(path)
    record = record_path(path)
    check_file_name(record)
    if record.exists() and (problem := foreign_record(record, path.name, fetched=fetched)):
        raise InputError(f"{record} is where the video's record goes, and {problem}: give another --output")


def _check_no_input(path: Path, given: Iterable[Path]) -> None:
    if path.exists() and any(path.samefile(other) for other in given):
        raise InputError(f"output {path} is one of the inputs: give another --output")


def foreign_record(path: Path, video: str, *, fetched: bool = False) -> str | None:
    """Why a file is not the record of the result `video`; None if it is.

    That of a fetched video is known by its naming no other file beside it.
    """
    try:
        if path.stat().st_size > MAX_RECORD_BYTES:
            return "it is no record"
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return "it is no record"
    wanted = {"prompt", "seed", "video_sha256"} if fetched else {"record_version", "video", "prompt", "settings"}
    if not isinstance(record, dict) or not wanted <= record.keys():
        return "it is no record"
    named = str(record.get("video", video))
    if named == video or (fetched and not (path.parent / Path(named).name).exists()):
        return None
    return f"it is that of {named!r}"


def is_contact_sheet(path: Path) -> bool:
    """Whether a PNG has the size and the border of a contact sheet."""
    from videomaker.media import SHEET_COLOUR, SHEET_GAP, SHEET_ROW  # numpy and Pillow: only for a file that is there

    try:
        head = path.read_bytes()[:24]
        if head[:8] != b"\x89PNG\r\n\x1a\n" or (struct.unpack(">I", head[20:24])[0] - SHEET_GAP) % (
            SHEET_ROW + SHEET_GAP
        ):
            return False
        from PIL import Image

        with Image.open(path, formats=("PNG",)) as image:
            border = image.convert("RGB").crop((0, 0, image.width, SHEET_GAP)).getcolors(2)
            return border == [(image.width * SHEET_GAP, SHEET_COLOUR)]
    except (OSError, struct.error, ValueError):
        return False
