"""The one way to make a digest: SHA-256 in hexadecimal. Caches of latents keep the BLAKE2b that they were made with."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer


def sha256(*parts: str | Buffer) -> str:
    """Of the parts one after the other, in hexadecimal; texts as UTF-8."""
    return sha256_of_all(parts)


def sha256_of_all(parts: Iterable[str | Buffer]) -> str:
    """As `sha256`, of parts that are made one at a time."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()


def sha256_of_file(path: str | os.PathLike) -> str:
    """Of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_number(text: str) -> int:
    """The digest's first 64 bits, for seeds and fixed random choices."""
    return int(sha256(text)[:16], 16)


def blake2b_of_all(parts: Iterable[str | Buffer]) -> str:
    """BLAKE2b of 16 bytes, in hexadecimal."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()
