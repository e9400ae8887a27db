"""Files of clips, whether in a folder or in WebDataset shards (tar files), and the writing of shards."""

from __future__ import annotations

import functools
import io
import tarfile
from pathlib import Path

from PIL import Image

from videomaker.errors import InputError
from videomaker.media import load_reference

from .manifest import Clip
from .video import ClipError


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
        return load_reference(source) if isinstance(source, Path) else Image.open(source).convert("RGB")
    except (InputError, OSError) as error:
        raise ClipError("bad reference", str(error)) from error


def read_member(shard: Path, name: str) -> bytes:
    """The bytes of a shard's member, found by its offset. Raises `ClipError` when it is missing or cut off."""
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
