"""Where files lie: a folder, or an object store of the same interface. Keys are ours; no name of a user's is one."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import obstore
from obstore.exceptions import AlreadyExistsError
from obstore.store import AzureStore, GCSStore, LocalStore, S3Store, from_url

CHUNK = 256 * 1024


class Store:
    """Files by key, such as `videos/ID/LEASE/video.mp4`.

    Args:
        url: a folder, or the URL of an object store (`s3://bucket/prefix`).
    """

    def __init__(self, url: str):
        self.folder = None if "://" in url else Path(url)
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
        self._store = LocalStore(self.folder) if self.folder is not None else from_url(url)

    def put(self, key: str, data: bytes) -> None:
        """Writes a file that is not there yet, complete or absent; its name is on disk after `settle`.

        Raises:
            FileExistsError: it is there already.
        """
        try:
            obstore.put(self._store, key, data, mode="create")
        except AlreadyExistsError as error:
            raise FileExistsError(f"{key} exists") from error
        if self.folder is not None:
            _sync(self.folder / key)

    def settle(self, prefix: str) -> None:
        """Makes sure that what was put directly below a prefix survives a power cut, under its name."""
        if self.folder is not None:
            _sync(self.folder / prefix)
            _sync((self.folder / prefix).parent)

    def get(self, key: str) -> bytes:
        """The whole file.

        Raises:
            FileNotFoundError: there is none.
        """
        return bytes(obstore.get(self._store, key).bytes())

    def copy(self, source: str, target: str) -> None:
        """A second file with the first one's content."""
        obstore.copy(self._store, source, target)

    async def stream(self, key: str, start: int, stop: int) -> AsyncIterator[bytes]:
        """The bytes `start` to `stop` of a file, in pieces.

        Raises:
            FileNotFoundError: there is none.
        """
        for position in range(start, stop, CHUNK):
            end = min(position + CHUNK, stop)
            yield bytes(await obstore.get_range_async(self._store, key, start=position, end=end))

    def signed_url(self, key: str, seconds: float) -> str | None:
        """A link to the file that the store itself answers for a while; None where it has no such links."""
        if not isinstance(self._store, (AzureStore, GCSStore, S3Store)):
            return None
        return obstore.sign(self._store, "GET", key, timedelta(seconds=seconds))

    def keys(self, prefix: str) -> list[str]:
        """The keys below a prefix (a whole part of the path)."""
        return [meta["path"] for batch in obstore.list(self._store, prefix) for meta in batch]

    def children(self, prefix: str) -> list[str]:
        """The names directly below a prefix."""
        found = obstore.list_with_delimiter(self._store, prefix)["common_prefixes"]
        return [path.rstrip("/").rsplit("/", 1)[-1] for path in found]

    def delete(self, prefix: str, *, keep: tuple[str, ...] = ()) -> None:
        """Removes every file below a prefix but those below `prefix/NAME` for the names in `keep`; absent is fine."""
        kept = tuple(f"{prefix}/{name}" for name in keep)
        keys = [key for key in self.keys(prefix) if not key.startswith(kept or ("\0",))]
        for key in keys:
            try:
                obstore.delete(self._store, key)
            except FileNotFoundError:
                continue
        if self.folder is not None:
            _remove_empty(self.folder / prefix)

    def free_bytes(self) -> int | None:
        """What the disk has left; None for an object store."""
        return None if self.folder is None else shutil.disk_usage(self.folder).free

    def answers(self) -> bool:
        """Whether the store can be reached."""
        try:
            obstore.list_with_delimiter(self._store, "videos")
        except Exception:  # each kind of store has its own
            return False
        return self.folder is None or os.access(self.folder, os.W_OK)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_empty(folder: Path) -> None:
    for path, _, _ in os.walk(folder, topdown=False):
        try:
            os.rmdir(path)
        except OSError:
            continue  # a file is kept there, or somebody writes one now
