"""A manifest's clips out of a plain folder: videos, and captions beside them or in a table."""

from __future__ import annotations

import collections
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from videomaker.errors import InputError

SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".ts", ".mpg")
TABLES = ("metadata.jsonl", "metadata.csv")  # as Hugging Face's datasets reads a folder: file_name and a text
_TEXTS = ("text", "caption", "prompt")

Captions = dict[Path, list[str] | None]


def index_folder(
    root: Path, *, texts: Path | None = None, subject: str | None = None
) -> tuple[list[tuple[dict[str, Any], str]], collections.Counter]:
    """Clips of the videos below `root`, each with the lines of a text file of its name, or a row of a table.

    Args:
        root: the folder; its tables are `metadata.jsonl` or `metadata.csv` with `file_name` and `text`.
        texts: folder searched for `<the video's path below root>.txt` instead; default `root`.
        subject: what highlighting looks for in every clip, such as "dog".

    Returns:
        The clips as `build_manifest` takes them, and how many videos or rows are left out by reason.

    Raises:
        InputError: there is no such folder, or no video in it, or a table is not one.
    """
    if not root.is_dir():
        raise InputError(f"--root {root} is not a folder")
    videos = [path for path in sorted(root.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not videos:
        raise InputError(f"no video in {root}; looked for {', '.join(SUFFIXES)}")
    table = _read_tables(root)
    dropped = collections.Counter({"row without a video": len(table.keys() - set(videos))})
    clips: list[tuple[dict[str, Any], str]] = []
    seen: set[str] = set()
    for video in videos:
        name = video.relative_to(root).with_suffix("")
        captions = table[video] if video in table else _read_lines((texts or root) / name.parent / f"{name.name}.txt")
        clip_id = "-".join(name.parts)
        if reason := "caption is not UTF-8" if captions is None else "no caption" if not captions else "":
            dropped[reason] += 1
        elif clip_id in seen:
            dropped["same name"] += 1
        else:
            seen.add(clip_id)
            fields = {"id": clip_id, "video": video, "captions": captions, "subject_phrase": subject}
            clips.append((fields, clip_id))
    return clips, +dropped


def _read_lines(path: Path) -> list[str] | None:
    """The lines of a caption file, each once; none without the file, None when it is not UTF-8."""
    if not path.is_file():
        return []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        return None
    return list(dict.fromkeys(filter(None, map(str.strip, lines))))


def _read_tables(root: Path) -> Captions:
    found: Captions = {}
    for path in sorted(path for name in TABLES for path in root.rglob(name)):
        for row in _rows(path):
            text = next((row[name].strip() for name in _TEXTS if isinstance(row.get(name), str)), "")
            captions = found.setdefault(path.parent / str(row["file_name"]), [])
            if captions is not None and text and text not in captions:
                captions.append(text)
    return found


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file) if path.suffix == ".csv" else map(json.loads, filter(str.strip, file)))
    except (UnicodeDecodeError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    for row in rows:
        if not isinstance(row, dict) or not row.get("file_name"):
            raise InputError(f"{path} has a row without file_name: {str(row)[:80]}")
        yield row
