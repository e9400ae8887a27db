"""Shards that lie elsewhere: a manifest by its URL, whose shards come to this machine when they are first read.

`http://`, `https://`, `s3://`, `gs://` and `az://` are read by obstore, with credentials as the environment has them
(`AWS_ACCESS_KEY_ID` and so on). A copy has a folder of its own, named after the URL and the manifest's digest, with the
URL in `source.json`; from there on it is a folder of shards like any other, in which some are not there yet. Shards are
called the same whatever is in them, so what is at a URL later is another copy and never mixes with this one.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import subprocess
import sys
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from videomaker.digests import sha256, sha256_of_file
from videomaker.errors import InputError
from videomaker.files import atomic_path

from .errors import ClipError
from .manifest import read_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = "source.json"
_SCHEMES = ("http", "https", "s3", "gs", "az")
_RETRIES = 4  # of a request that fails on the way

logger = logging.getLogger(__name__)


def local_manifest(name: str, downloads: str = "") -> Path:
    """The manifest on this machine: `name` itself, or a fresh copy of the one at a URL.

    Where the URL cannot be reached and there is an earlier copy, that is taken, with a warning.

    Args:
        name: a path or a URL.
        downloads: folder of the copies; "" is the user's cache.

    Raises:
        InputError: the URL is of an unknown kind, cannot be read, or its clips are not in shards beside it.
    """
    scheme, separator, _ = name.partition("://")
    if not separator:
        return Path(name)
    if scheme not in _SCHEMES:
        raise InputError(f"data.manifest={name}: give a file or a URL that begins with {', '.join(_SCHEMES)}")
    base, _, file = name.rpartition("/")
    copies = Path(downloads or _cache_folder()) / sha256(name)[:16]
    copies.mkdir(parents=True, exist_ok=True)
    earlier = _newest_first(copies)
    try:
        folder = _fetch_manifest(base, file, copies)
    except ClipError as error:
        if not earlier:
            raise InputError(f"{name} cannot be read: {error}") from error
        folder = earlier[0]
        logger.warning("%s cannot be read (%s): taking the copy of an earlier run", name, error)
    if earlier and folder not in earlier:  # which another run may still read
        logger.warning("%s is not what it was: its shards come anew, the copy of before stays in %s", name, earlier[0])
    _check_places(folder / file, name)
    return folder / file


def _newest_first(copies: Path) -> list[Path]:
    """The copies of what has been at one URL, the last one that a run began with first."""
    sources = sorted(copies.glob(f"*/{SOURCE}"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    return [path.parent for path in sources]


def _fetch_manifest(base: str, file: str, copies: Path) -> Path:
    """The folder of the copy of what is at a URL now, with the manifest in it.

    Raises:
        ClipError: it cannot be fetched whole.
    """
    with TemporaryDirectory(dir=copies) as temporary:
        fetched = Path(temporary) / file
        version = _download(base, file, fetched)
        folder = copies / sha256_of_file(fetched)[:16]
        folder.mkdir(exist_ok=True)
        os.replace(fetched, folder / file)  # of the same bytes, if another process was quicker
    with atomic_path(folder / SOURCE) as temporary_source:
        temporary_source.write_text(json.dumps({"url": base, "manifest": file, "version": version}))
    return folder


def ensure_local(path: Path) -> None:
    """Fetches a shard that is not there yet, once for all processes of this machine; other files are left alone.

    Raises:
        ClipError: it cannot be fetched whole, or the URL has another manifest by now.
    """
    if path.exists() or (source := _source_of(path)) is None:
        return
    folder, where = source
    with _locked(path):
        if not path.exists():
            with atomic_path(path) as temporary:
                _download(where["url"], path.relative_to(folder).as_posix(), temporary)
                _check_unchanged(folder, where)


def _check_unchanged(folder: Path, where: dict[str, Any]) -> None:
    """Refuses what came from a URL whose manifest is no longer the one in `folder`: it may belong to the new one.

    Raises:
        ClipError: so, or the manifest is not there.
    """
    url, file = where["url"], where["manifest"]
    answer = _request("head", url, file)
    if answer.get("version") == where["version"]:
        return
    with TemporaryDirectory(dir=folder.parent) as temporary:  # the same bytes may have been written once more
        fetched = Path(temporary) / file
        _download(url, file, fetched)
        if sha256_of_file(fetched) != sha256_of_file(folder / file):
            raise ClipError("changed", f"{url}/{file} is not what it was when this run began: start it again")


def is_there(path: Path) -> bool:
    """Whether a shard is on this machine or where its manifest came from."""
    if path.is_file():
        return True
    source = _source_of(path)
    return source is not None and _answers(source[1]["url"], path.relative_to(source[0]).as_posix())


@lru_cache(maxsize=4096)  # hundreds of clips are in one shard
def _answers(url: str, name: str) -> bool:
    return "error" not in _request("head", url, name)


def _source_of(path: Path) -> tuple[Path, dict[str, Any]] | None:
    """The copy that a path is in, and what its `source.json` says: the URL, the manifest's name and its version."""
    for folder in path.parents:
        if (file := folder / SOURCE).is_file():
            return folder, json.loads(file.read_text(encoding="utf-8"))
    return None


def _download(url: str, name: str, target: Path) -> str:
    """Writes an object to `target`, which is a temporary file; returns its version.

    Raises:
        ClipError: it cannot be fetched whole.
    """
    answer = _request("get", url, name, str(target))
    if "error" in answer:
        raise ClipError("missing", f"{url}/{name}: {answer['error']}")
    return answer["version"]


def _request(verb: str, url: str, name: str, *target: str) -> dict[str, Any]:
    """What `transfer.py` answers."""
    if find_spec("obstore") is None:
        raise InputError(f"{url} needs obstore: pip install obstore")
    command = [sys.executable, "-P", str(Path(__file__).with_name("transfer.py")), verb, url, name, str(_RETRIES)]
    done = subprocess.run([*command, *target], capture_output=True, text=True, check=False)
    try:
        return json.loads(done.stdout)
    except ValueError:
        lines = done.stderr.strip().splitlines()
        return {"error": lines[-1] if lines else f"it ended with {done.returncode}"}


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """While this lasts, no other process of this machine fetches the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _check_places(manifest: Path, name: str) -> None:
    """Refuses a manifest whose clips are not in shards, or in shards outside of its folder."""
    for clip in read_manifest(manifest):
        if clip.shard is None:
            raise InputError(
                f"{name} has clips outside of shards, first {clip.id!r}: pack it with `videomaker data shard`"
            )
        if not (manifest.parent / clip.shard).resolve().is_relative_to(manifest.parent.resolve()):
            raise InputError(f"{name} names the shard {clip.shard!r}, which leaves its folder")


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "videomaker" / "shards"
