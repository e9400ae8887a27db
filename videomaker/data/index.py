"""Manifests out of the folders of CelebV-Text and VideoBooth, as their authors publish them."""

from __future__ import annotations

import collections
import csv
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from videomaker.digests import sha256_number
from videomaker.errors import InputError

from .check import describe_counts, map_files
from .index_folder import SUFFIXES, index_folder
from .manifest import Clip, Reference, check_place, write_manifest
from .video import ClipError, VideoInfo, probe

# CelebV-Text has a folder of descriptions for each of these; one of them is spelt in two ways.
CELEBV_TEXT_KINDS = (
    "face40_details_new",
    "action_dur",
    "emotion",
    "light_dir",
    "light_intensity",
    "light_color_temp",
    "light_colot_temp",
)

# A clip before its video was looked at: the manifest's fields with absolute paths, and what its split goes by.
Draft = tuple[dict[str, Any], str]
Drafts = tuple[list[Draft], collections.Counter]


def index_celebv_text(root: Path, *, videos: Path | None = None, texts: Path | None = None) -> Drafts:
    """Clips of `celebvtext_info.json` that have a video and a description.

    A released video's name may have one more number than the clip's id (`<id>_<j>.mp4`); every such video is a clip.

    Args:
        root: folder of `celebvtext_info.json`.
        videos: folder searched for `<id>.mp4` and `<id>_<j>.mp4`; default `root`.
        texts: folder searched for `<kind>/<id>.txt`, a sentence a line; default `root`.

    Raises:
        InputError: the JSON is missing or not of this layout.
    """
    drafts: list[Draft] = []
    dropped: collections.Counter = collections.Counter()
    entries = _celebv_entries(root / "celebvtext_info.json", dropped)
    paths = (path for path in (videos or root).rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    found = _by_clip_id(paths, entries)
    dropped["not in the JSON"] = sum(len(paths) for clip_id, paths in found.items() if clip_id not in entries)
    kinds = collections.defaultdict(list)
    for path in sorted((texts or root).rglob("*.txt")):
        if path.parent.name in CELEBV_TEXT_KINDS:
            kinds[path.stem].append(path)
    for clip_id, entry in entries.items():
        dropped["missing"] += not found[clip_id]
        for video in found[clip_id]:
            captions, unreadable = _sentences(kinds.get(video.stem) or kinds.get(clip_id, []))
            dropped["caption is not UTF-8"] += unreadable if captions else bool(unreadable)
            if captions:
                fields = {"id": video.stem, "video": video, "captions": captions}
                drafts.append(
                    ({**fields, "category": "person", "subject_phrase": "head"}, str(entry.get("ytb_id", clip_id)))
                )
            elif not unreadable:
                dropped["no description"] += 1
    return drafts, dropped


def index_videobooth(root: Path, *, videos: Path | None = None, masks: Path | None = None) -> Drafts:
    """Clips of VideoBooth's `<category>.csv` files that have a video and masks of its first frame.

    Args:
        root: folder of `<category>.csv` and `<category>/<videoid>/mask.json`.
        videos: WebVid's folder, with `<page_dir>/<videoid>.mp4`; default `root/videos`.
        masks: folder of `<videoid>/mask_<value>.png`; default: beside each `mask.json`.

    Raises:
        InputError: there are no such files, or a table lacks a column.
    """
    tables = sorted(root.glob("*.csv"))
    if not tables:
        raise InputError(f"no <category>.csv in {root}; give VideoBooth's folder of tables as --root")
    drafts: list[Draft] = []
    dropped: collections.Counter = collections.Counter()
    for table in tables:
        for row in _videobooth_rows(table):
            if reason := _problem_of(row):
                dropped[reason] += 1
                continue
            video = (videos or root / "videos") / row["page_dir"] / f"{row['videoid']}.mp4"
            folder = root / table.stem / row["videoid"]
            try:
                refs, label = _videobooth_refs(folder, masks / row["videoid"] if masks else folder)
            except ClipError as error:
                dropped[error.reason] += 1
                continue
            fields = {"id": f"{table.stem}-{row['videoid']}", "video": video, "captions": [row["name"]], "refs": refs}
            drafts.append(({**fields, "category": table.stem, "subject_phrase": label}, row["videoid"]))
    return drafts, dropped


LAYOUTS: dict[str, Callable[..., Drafts]] = {
    "celebv-text": index_celebv_text,
    "videobooth": index_videobooth,
    "folder": index_folder,
}


def build_manifest(drafts: Drafts, out: Path, *, val_fraction: float = 0.0) -> tuple[int, collections.Counter]:
    """Looks at every video and writes the manifest of those that can be used.

    Args:
        drafts: the clips of a layout.
        out: the manifest; the paths in it are relative to its folder.
        val_fraction: the share of source videos whose clips get the split `val`, chosen by a hash of the source's id,
            so that a source is never in both splits and the choice does not change when clips come or go.

    Returns:
        The number of clips written, and the number dropped by reason.

    Raises:
        InputError: no clip can be used; nothing is written.
    """
    clips, dropped = drafts[0], collections.Counter(drafts[1])
    check_place(out, videos=(Path(fields["video"]).resolve() for fields, _ in clips))
    base, usable = out.resolve().parent, {}
    for (fields, source), info in zip(clips, map_files(_probe_draft, clips, "reading videos"), strict=True):
        if isinstance(info, ClipError):
            dropped[info.reason] += 1
        elif fields["id"] in usable:
            dropped["same id"] += 1
        else:
            split = "val" if _share(source) < val_fraction else "train"
            usable[fields["id"]] = _finish(fields, info, base, split)
    dropped = +dropped
    if not usable:
        reasons = describe_counts(dropped.elements()) or "the layout lists none"
        raise InputError(f"no clip can be used ({reasons}); look at --root and --videos. {out} is not written")
    write_manifest(out, usable.values())
    return len(usable), dropped


def _finish(fields: dict[str, Any], info: VideoInfo, base: Path, split: str) -> Clip:
    def relative(path: str | Path) -> str:
        return Path(os.path.relpath(Path(path).resolve(), base)).as_posix()

    refs = tuple(ref.model_copy(update={"mask": relative(ref.mask)}) for ref in fields.get("refs", ()))
    paths = {"video": relative(fields["video"]), "refs": refs}
    size = {"num_frames": info.num_frames, "fps": info.fps, "width": info.width, "height": info.height}
    return Clip(**{**fields, **paths, **size, "split": split})


def _probe_draft(draft: Draft) -> VideoInfo | ClipError:
    try:
        return probe(draft[0]["video"])
    except ClipError as error:
        return error


def _share(source: str) -> float:
    """A fixed pseudo-random number in [0, 1) for a source video."""
    return sha256_number(source) / 2**64


def _celebv_entries(path: Path, dropped: collections.Counter) -> dict[str, dict[str, Any]]:
    """Clip id -> its entry; the file comes with and without the level `clips`. Counts ids that are there twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        first: dict[str, Any] = {}
        for key, value in pairs:
            dropped["same id"] += key in first
            first.setdefault(key, value)
        return first

    content = _read_json(path, object_pairs_hook=unique)
    entries = content.get("clips", content) if isinstance(content, dict) else None
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise InputError(f"{path} is not CelebV-Text's: expected {{'clips': {{ID: {{'ytb_id': ...}}}}}}")
    return entries


def _by_clip_id(videos: Iterator[Path], entries: dict[str, Any]) -> dict[str, list[Path]]:
    found = collections.defaultdict(list)
    for video in sorted(videos):
        shorter, _, number = video.stem.rpartition("_")
        clip_id = shorter if video.stem not in entries and number.isdigit() else video.stem
        found[clip_id].append(video)
    return found


def _sentences(files: list[Path]) -> tuple[list[str], int]:
    """The lines of all files, each once, and the number of files that are not UTF-8."""
    lines: list[str] = []
    unreadable = 0
    for path in sorted(files, key=lambda path: CELEBV_TEXT_KINDS.index(path.parent.name)):
        try:
            lines += map(str.strip, path.read_text(encoding="utf-8-sig").splitlines())
        except UnicodeDecodeError:
            unreadable += 1
    return list(dict.fromkeys(filter(None, lines))), unreadable


def _videobooth_rows(table: Path) -> Iterator[dict[str, str]]:
    # Bytes that are not UTF-8 become lone surrogates, by which `_problem_of` knows them.
    with table.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.DictReader(file)
        absent = {"videoid", "page_dir", "name"} - set(reader.fieldnames or ())
        if absent:
            raise InputError(f"{table} has no column {', '.join(sorted(absent))}; expected videoid, page_dir and name")
        try:
            yield from reader
        except csv.Error as error:
            raise InputError(f"{table}:{reader.line_num} is not CSV: {error}") from error


def _problem_of(row: dict[str, str]) -> str:
    """Why a row of VideoBooth's tables names no clip; "" when it does."""
    if not row["videoid"] or row["page_dir"] is None:
        return "incomplete row"
    if not (row["name"] or "").strip():
        return "no caption"
    return "" if _is_utf8(row["name"]) else "caption is not UTF-8"


def _is_utf8(text: str) -> bool:
    return not any("\udc80" <= character <= "\udcff" for character in text)


def _videobooth_refs(folder: Path, masks: Path) -> tuple[list[Reference], str]:
    """References by masks of frame 0, with absolute paths, and the label of the first."""
    if not (folder / "mask.json").is_file():
        raise ClipError("no mask", str(folder / "mask.json"))
    try:
        subjects = [entry for entry in _read_json(folder / "mask.json") if entry["label"] != "background"]
        subjects = [entry for entry in subjects if (masks / f"mask_{entry['value']}.png").is_file()]
        refs = [
            Reference(frame=0, mask=str(masks / f"mask_{entry['value']}.png"), box=entry["box"]) for entry in subjects
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ClipError("bad mask.json", str(error)) from error
    if not refs:
        raise ClipError("no mask", str(masks))
    return refs, str(subjects[0]["label"])


def _read_json(path: Path, **options: Any) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), **options)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; look at --root") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from error
