"""Outputs that are complete or absent: written aside, then renamed. And what a file holds, as a digest."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from videomaker.digests import sha256_of_file as sha256  # noqa: F401  a file's digest, known here for long
from videomaker.errors import InputError

MAX_NAME_BYTES = 255  # of a name, in the file systems in use
MAX_PATH_BYTES = 4096
MAX_SUFFIX = 16  # characters


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
def atomic_directory(path: str | os.PathLike, *, ours: Callable[[Path], bool] | None = None) -> Iterator[Path]:
    """Yields an empty temporary sibling folder, which takes the place of `path` when the block ends well.

    Args:
        path: the folder to make.
        ours: whether a folder that is there holds what the same command made, and nothing else; only such a one and an
            empty one are replaced. Needed wherever the name comes from a user; None replaces any folder.

    Raises:
        InputError: something else is there; see `check_replaceable`.
        OSError: the folder cannot be created, or an existing `path` cannot be replaced.
    """
    path = Path(path)
    if ours is not None:
        check_replaceable(path, ours)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_sibling(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in filter(Path.is_file, temporary.rglob("*")):
            _finish(file)
        if ours is not None:
            check_replaceable(path, ours)  # the work took its time
        _swap_directory(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_replaceable(path: Path, ours: Callable[[Path], bool] | None = None) -> None:
    """Refuses to put a folder where something lies that is not to be lost: to be called before the work.

    Raises:
        InputError: `path` is no folder, or a folder that is neither empty nor `ours`.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise InputError(f"{path} is there and is not a folder: give another name")
    if path.is_dir() and any(path.iterdir()) and not (ours is not None and ours(path)):
        raise InputError(f"{path} holds files that are not this command's: give another folder, or an empty one")


def check_writable(folder: Path) -> None:
    """Finds out before the work whether its result could be written, by trying.

    Raises:
        InputError: it could not.
    """
    _check_text(folder)
    _check_length(folder.absolute())
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise InputError(f"output {folder}: {existing} is a file, not a folder")
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise InputError(f"output {folder}: {existing} cannot be written ({error.strerror})") from error


def _check_text(path: Path) -> None:
    """Or it could be written, and not told."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"output {str(path)!r} is not UTF-8: give another name") from error


def _check_length(folder: Path) -> None:
    """Or half of the folders would be made before one is too long."""
    parts = [os.fsencode(part) for part in folder.parts]
    if longest := next((part for part in parts if len(part) > MAX_NAME_BYTES), None):
        raise InputError(f"output: the folder {os.fsdecode(longest)[:40]}… is too long a name: give a shorter one")
    if len(os.fsencode(folder)) + MAX_NAME_BYTES > MAX_PATH_BYTES:
        raise InputError(f"output {str(folder)[:40]}… is too long a path: give a shorter one")


def check_file_name(path: Path) -> None:
    """Refuses what cannot become a file: names that are too long or not UTF-8, and what is there and no plain file.

    Raises:
        InputError: with the reason.
    """
    _check_text(path)
    length = len(path.name.encode())
    if length > MAX_NAME_BYTES:
        raise InputError(
            f"output {path.name[:40]}… is a name of {length} bytes, {MAX_NAME_BYTES} fit: give a shorter one"
        )
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        mode = None
    except OSError as error:  # a link to itself, a path through a file
        raise InputError(f"output {path} cannot be used: {error.strerror}") from error
    if mode is not None and not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise InputError(f"output {path} is there and is {kind}: give another name")


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
    """Short whatever the name, which may be as long as the file system allows."""
    return path.with_name(f".{uuid.uuid4().hex}.tmp{path.suffix[-MAX_SUFFIX:]}")


def _finish(path: Path) -> None:
    """Flushes a file to disk, so that no crash can leave it empty under its final name, and lets others read it.

    Some libraries (safetensors) write files that only their owner may read, whatever the umask says.
    """
    if not path.is_file():
        return
    path.chmod(path.stat().st_mode | (0o666 & ~_umask()))
    sync(path)


def sync(path: Path) -> None:
    """Forces a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0o077)  # it can only be read by setting it
    os.umask(mask)
    return mask


def is_lfs_pointer(start: bytes) -> bool:
    """Whether a file that starts so is what Git LFS leaves in place of one that was not fetched."""
    return start.startswith(b"version https://git-lfs.github.com/spec/")


def read_text(path: Path, *, max_bytes: int = 2**24) -> str:
    """The text of a regular file in UTF-8, of bounded size.

    Raises:
        InputError: anything else, a pipe or a device among it, which would be waited for without end.
    """
    try:
        if not path.is_file():
            raise InputError(f"{path} {'is not a regular file' if path.exists() else 'does not exist'}")
        if path.stat().st_size > max_bytes:
            raise InputError(f"{path} has {path.stat().st_size:,} bytes, at most {max_bytes:,} are read")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} cannot be read as UTF-8 text: {error}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def read_json(path: Path, *, max_bytes: int = 2**24) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        InputError: it cannot be read, is not JSON, or not an object.
    """
    return parse_json(read_text(path, max_bytes=max_bytes), str(path))


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON for people to read, in UTF-8; a file's name that is none keeps its bytes as escapes, which `json` reads."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent)
    return text


def parse_json(text: str, name: str) -> dict[str, Any]:
    """The JSON object that a text is; messages call it `name`.

    Raises:
        InputError: it is not JSON, or not an object.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{name} holds a {type(value).__name__}, not a JSON object")
    return value


def check_results_folder(out: Path, names: Iterable[str], is_ours: Callable[[Path], bool]) -> None:
    """Refuses a folder in which a command would replace files of others: to be called before the work.

    Args:
        out: the folder, there or not.
        names: of the files that the command writes.
        is_ours: whether such files in `out` are of earlier results of the command.

    Raises:
        InputError: `out` is no folder or cannot be written, or holds such files of others.
    """
    if os.path.lexists(out) and not out.is_dir():
        raise InputError(f"{out} is not a folder: give another --out")
    check_writable(out)
    there = next((name for name in names if (out / name).exists()), None)
    if there and not is_ours(out):
        raise InputError(f"{out / there} is not of this command and would be replaced: give another --out")
