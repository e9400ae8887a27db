"""Files of clips, whether in a folder or in WebDataset shards (tar files), and the writing of shards."""

from __future__ import annotations

import collections
import functools
import io
import json
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from videomaker.digests import sha256
from videomaker.errors import InputError
from videomaker.files import atomic_path, check_results_folder
from videomaker.media import load_reference

from .manifest import Clip, Reference, check_place, read_manifest, write_manifest
from .reference import read_mask
from .remote import ensure_local
from .video import ClipError, Video, probe

PLAN = "plan.json"  # how a folder's files were made


def clip_file(root: Path, clip: Clip, name: str) -> Path | io.BytesIO:
    """A file that a clip names: its path below the manifest's folder, or its bytes out of the clip's shard.

    Raises:
        ClipError: the shard or the member is missing.
    """
    if clip.shard is None:
        return root / name
    return io.BytesIO(read_member(root / clip.shard, name))


def load_image(root: Path, clip: Clip, name: str) -> Image.Image:
    """An RGB picture of a clip; transparency over white.

    Raises:
        ClipError: it is missing or cannot be read.
    """
    source = clip_file(root, clip, name)
    try:
        return load_reference(source, name=name if isinstance(source, io.BytesIO) else None)
    except (InputError, OSError) as error:
        raise ClipError("bad reference", str(error)) from error


def reference_picture(root: Path, clip: Clip, ref: Reference, video: Video) -> Image.Image:
    """The picture that a reference names: a file, or a frame of its clip.

    Raises:
        ClipError: it is missing or cannot be read.
    """
    return load_image(root, clip, ref.image) if ref.image else video.read([ref.frame or 0])[0]


def load_mask(root: Path, clip: Clip, name: str) -> Image.Image:
    """A mask of a clip, by its labels: see `read_mask`.

    Raises:
        ClipError: it is missing or cannot be read.
    """
    source = clip_file(root, clip, name)
    try:
        return read_mask(source, name if clip.shard else None)
    except InputError as error:
        raise ClipError("bad reference", str(error)) from error


def read_member(shard: Path, name: str) -> bytes:
    """The bytes of a shard's member, found by its offset. Raises `ClipError` when it is missing or cut off."""
    ensure_local(shard)
    try:
        offset, size = _members(shard)[name]
        with shard.open("rb") as file:
            file.seek(offset)
            content = file.read(size)
    except (KeyError, OSError, tarfile.TarError) as error:
        raise ClipError("missing", f"{name} in {shard}: {error}") from error
    if len(content) < size:
        raise ClipError("broken", f"{shard} ends inside {name}")
    return content


@functools.lru_cache(maxsize=256)
def _members(shard: Path) -> dict[str, tuple[int, int]]:
    """Name -> (offset, size). One pass over the headers, once per shard and process."""
    with tarfile.open(shard, "r:") as tar:
        return {member.name: (member.offset_data, member.size) for member in tar if member.isfile()}


def write_shards(manifest: Path, out: Path, *, clips_per_shard: int = 500) -> tuple[int, dict[str, int]]:
    """Packs a manifest's clips and their pictures into `out/shard-000000.tar ...` with `out/manifest.jsonl`.

    The shards are WebDataset's: `<key>.mp4`, `<key>.json` (the manifest's line), `<key>.ref0.png`, `<key>.mask0.png`.
    The new manifest is read like any other. Clips that cannot be used are left out. A shard is complete or absent:
    the same call after an interruption goes on with the first shard that is absent.

    Returns:
        The number of clips in the shards, and the number that this call left out, by reason.

    Raises:
        InputError: the manifest is wrong, `out` holds shards of another one, or no clip can be used.
    """
    check_place(out / "manifest.jsonl", source=manifest)
    check_results_folder(out, ["manifest.jsonl", "shard-000000.tar"], is_claimed)
    clips = read_manifest(manifest)
    plan = {"manifest": sha256(manifest.read_bytes()), "clips_per_shard": clips_per_shard}
    claim(out, plan, "shards of another manifest or size")
    packed: list[Clip] = []
    dropped: collections.Counter[str] = collections.Counter()
    with tqdm(total=len(clips), desc="writing shards", unit="clip", disable=None) as progress:
        for number, first in enumerate(range(0, len(clips), clips_per_shard)):
            shard = out / f"shard-{number:06d}.tar"
            chunk = clips[first : first + clips_per_shard]
            if not shard.exists():
                dropped += _write_shard(shard, chunk, root=manifest.parent, first=first)
            packed += _packed_clips(shard)
            progress.update(len(chunk))
    if not packed:
        _withdraw(out)
        raise InputError(f"no clip of {manifest} can be used; `videomaker data check {manifest}` says why")
    write_manifest(out / "manifest.jsonl", packed)
    return len(packed), dict(dropped)


def _withdraw(out: Path) -> None:
    """Takes shards without a single clip away, with the folder if that is all that it holds."""
    for file in (*out.glob("shard-[0-9]*.tar"), out / PLAN):
        file.unlink()
    with suppress(OSError):
        out.rmdir()


def is_claimed(folder: Path) -> bool:
    """Whether a folder says how its files were made: see `claim`."""
    return (folder / PLAN).is_file()


def claim(folder: Path, plan: dict[str, Any], otherwise: str) -> None:
    """Records how a folder's files are made, or makes sure that those there were made so.

    Raises:
        InputError: they were not; `otherwise` says what they are then.
    """
    file = folder / PLAN
    if not file.exists():
        with atomic_path(file) as temporary:
            temporary.write_text(json.dumps(plan))
        return
    try:
        there = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is damaged ({error}): choose another --out, or remove the folder") from error
    if there != plan:
        raise InputError(f"{folder} holds {otherwise}; choose another --out or remove it")


def _write_shard(shard: Path, clips: list[Clip], *, root: Path, first: int) -> collections.Counter[str]:
    """Returns the number of clips left out, by reason."""
    from webdataset import TarWriter

    dropped: collections.Counter[str] = collections.Counter()
    with atomic_path(shard) as temporary, TarWriter(str(temporary), encoder=False, mtime=0) as writer:
        for index, clip in enumerate(clips, start=first):
            try:
                writer.write(_pack(clip, f"{index:08d}", root))
            except ClipError as error:
                dropped[error.reason] += 1
    return dropped


def _pack(clip: Clip, key: str, root: Path) -> dict[str, str | bytes]:
    """A WebDataset sample. Raises `ClipError` when the video or a picture cannot be used."""
    video = clip_file(root, clip, clip.video)
    probe(video)
    suffix = Path(clip.video).suffix.lower() or ".mp4"
    sample: dict[str, str | bytes] = {"__key__": key}
    refs = []
    for number, ref in enumerate(clip.refs):
        names = {"image": ref.image and f"ref{number}.png", "mask": ref.mask and f"mask{number}.png"}
        for kind, name in names.items():
            if name:
                read, mode = (load_image, "RGB") if kind == "image" else (load_mask, "L")
                sample[name] = _png(read(root, clip, getattr(ref, kind)), mode)
        refs.append(ref.model_copy(update={kind: name and f"{key}.{name}" for kind, name in names.items()}))
    sample[suffix[1:]] = video.getvalue() if isinstance(video, io.BytesIO) else video.read_bytes()
    packed = clip.model_copy(update={"video": f"{key}{suffix}", "refs": tuple(refs), "shard": None})
    sample["json"] = packed.model_dump_json(exclude_defaults=True).encode()
    return sample


def _png(image: Image.Image, mode: str) -> bytes:
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def _packed_clips(shard: Path) -> Iterator[Clip]:
    """The manifest's lines that a shard holds."""
    for name in _members(shard):
        if name.endswith(".json"):
            clip = Clip.model_validate_json(read_member(shard, name))
            yield clip.model_copy(update={"shard": shard.name})
