"""Outputs that are complete or absent: written aside, then renamed. And what a file holds, as a digest."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary sibling of `path` with its suffix, renamed onto `path` when the block ends well.

    The temporary file is removed on any exception, `KeyboardInterrupt` included, and `path` is then untouched.

    Raises:
        OSError: the folder cannot be created or written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_sibling(path)
    try:
        yield temporary
        _finish(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: str | os.PathLike) -> Iterator[Path]:
    """Yields an empty temporary sibling folder, which takes the place of `path` when the block ends well.

    Raises:
        OSError: the folder cannot be created, or an existing `path` cannot be replaced.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_sibling(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in filter(Path.is_file, temporary.rglob("*")):
            _finish(file)
        _swap_directory(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _swap_directory(new: Path, path: Path) -> None:
    """Renames `new` to `path`. A folder cannot be renamed onto a full one, so the old one steps aside first."""
    if not path.exists():
        os.replace(new, path)
        return
    old = _temporary_sibling(path)
    os.replace(path, old)
    try:
        os.replace(new, path)
    except OSError:
        os.replace(old, path)
        raise
    shutil.rmtree(old)


def _temporary_sibling(path: Path) -> Path:
    return path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}.tmp{path.suffix}")


def _finish(path: Path) -> None:
    """Flushes a file to disk, so that no crash can leave it empty under its final name, and lets others read it.

    Some libraries (safetensors) write files that only their owner may read, whatever the umask says.
    """
    if not path.is_file():
        return
    path.chmod(path.stat().st_mode | (0o666 & ~_umask()))
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0o077)  # it can only be read by setting it
    os.umask(mask)
    return mask


def sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_lfs_pointer(start: bytes) -> bool:
    """Whether a file that starts so is what Git LFS leaves in place of one that was not fetched."""
    return start.startswith(b"version https://git-lfs.github.com/spec/")
