"""Where files lie: a folder, or an object store of the same interface. Keys are ours; no name of a user's is one."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from videomaker.errors import InputError, first_line
from videomaker.files import sync

if TYPE_CHECKING:
    from obstore.store import BackoffConfig, ClientConfig, RetryConfig, S3Config

CHUNK = 256 * 1024
_KINDS = {".mp4": "video/mp4", ".webp": "image/webp", ".jpg": "image/jpeg", ".json": "application/json"}


class Store:
    """Files by key, such as `videos/ID/LEASE/video.mp4`.

    Args:
        url: a folder, or the URL of an object store (`s3://bucket/prefix`).
        options: of the object store, by obstore's names (`endpoint`, `region`, …); keys and secrets are better left to
            the environment or the machine's role.
        public_endpoint: where clients reach the object store, when that is not where this process does.
        patience: seconds for which a request to an object store is tried again before it fails.

    Raises:
        InputError: the URL or an option is none that obstore knows, or the folder cannot be made.
    """

    def __init__(
        self, url: str, options: dict[str, str] | None = None, *, public_endpoint: str = "", patience: float = 10
    ):
        self.folder, self.shown = None if "://" in url else Path(url), url
        if self.folder is not None:
            try:
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # pictures of people
            except OSError as error:
                raise InputError(f"files {url} cannot be kept: {error.strerror}; give another folder") from error
            self._store: Any = LocalStore(self.folder)
            return
        self._store = connect(url, options or {}, patience)
        public = {**(options or {}), "endpoint": public_endpoint}
        self._signer: Any = connect(url, public, patience) if public_endpoint else self._store

    def put(self, key: str, data: bytes) -> None:
        """Writes a file that is not there yet, complete or absent; its name is on disk after `settle`.

        Raises:
            FileExistsError: it is there already.
        """
        kind = _KINDS.get(Path(key).suffix)  # what an object store tells those whom a link leads there
        attributes = {"Content-Type": kind} if kind and self.folder is None else None
        try:
            obstore.put(self._store, key, data, mode="create", attributes=attributes)
        except AlreadyExistsError as error:
            raise FileExistsError(f"{key} exists") from error
        if self.folder is not None:
            sync(self.folder / key)

    def settle(self, prefix: str) -> None:
        """Makes sure that what was put directly below a prefix survives a power cut, under its name."""
        if self.folder is not None:
            sync(self.folder / prefix)
            sync((self.folder / prefix).parent)

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

    def signed_url(self, key: str, seconds: float, method: str = "GET") -> str | None:
        """A link to the file that the store itself answers for a while; None where files lie in a folder."""
        if self.folder is not None:
            return None
        return obstore.sign(self._signer, cast("Any", method), key, timedelta(seconds=seconds))

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
            self.check()
        except InputError:
            return False
        return True

    def check(self) -> None:
        """Refuses a store that cannot be used now.

        Raises:
            InputError: it does not answer or lets nobody in; or the folder cannot be written.
        """
        try:
            obstore.list_with_delimiter(self._store, "videos")
        except Exception as error:  # each kind of store has its own
            raise InputError(f"files {self.shown} do not answer: {first_line(error)[:300]}") from error
        if self.folder is not None and not os.access(self.folder, os.W_OK):
            raise InputError(f"files {self.folder} cannot be written: give its folder to the user that serves")


def connect(url: str, options: dict[str, str], patience: float) -> ObjectStore:
    """An object store of obstore's.

    Args:
        url: with a prefix, below which its paths are.
        options: by obstore's names.
        patience: seconds for which a request is tried again before it fails.

    Raises:
        InputError: the URL or an option is none that obstore knows.
    """
    limits: ClientConfig = {
        "timeout": timedelta(seconds=60),
        "connect_timeout": timedelta(seconds=3),
        "allow_http": True,
    }
    backoff: BackoffConfig = {"max_backoff": timedelta(seconds=2)}
    retries: RetryConfig = {"max_retries": 20, "retry_timeout": timedelta(seconds=patience), "backoff": backoff}
    try:
        return from_url(url, config=cast("S3Config", options), client_options=limits, retry_config=retries)
    except (BaseError, ValueError, TypeError) as error:
        reason = first_line(error)[:200]
        raise InputError(f"files {url!r} cannot be used: {reason}; see files and files_options") from error


def _remove_empty(folder: Path) -> None:
    for path, _, _ in os.walk(folder, topdown=False):
        try:
            os.rmdir(path)
        except OSError:
            continue  # a file is kept there, or somebody writes one now
