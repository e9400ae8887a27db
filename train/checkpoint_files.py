"""A checkpoint's folder on disk: what is written is recorded in a manifest, what is read is held against it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, cast

import torch
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import distributed as dist

from videomaker.files import sha256

if TYPE_CHECKING:
    from typing_extensions import Buffer

MANIFEST = "manifest.json"
TAG = "deepspeed"  # the folder of DeepSpeed's own files
WEIGHTS = {"weights": "trained.safetensors", "ema": "ema.safetensors"}


class _HashedFile(BaseModel):
    model_config = ConfigDict(strict=True)

    size: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _State(BaseModel):
    """What a resume needs besides the tensors; a checkpoint of an earlier version lacks the last two."""

    model_config = ConfigDict(extra="allow")

    guard: dict[str, Any]
    data: dict[str, Any]
    metrics: dict[str, float]
    config: dict[str, Any] = {}
    frozen: str = ""


class Manifest(BaseModel):
    """`manifest.json`: size and SHA-256 of every other file, as they were handed to the disk, and the run's state."""

    model_config = ConfigDict(strict=True)

    step: Annotated[int, Field(ge=0)]
    stage: Annotated[int, Field(ge=0, le=3)]
    world_size: Annotated[int, Field(ge=1)]
    state: _State
    files: Annotated[dict[str, _HashedFile], Field(min_length=1)]


@dataclass(frozen=True)
class Found:
    """A complete checkpoint: its folder, its step, and how it was written."""

    folder: Path
    step: int
    world_size: int
    stage: int
    state: dict[str, Any]


def read(folder: Path) -> Found | str:
    """The checkpoint in `folder` after a check of every file, or what is wrong with it."""
    try:
        manifest = Manifest.model_validate(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        return f"checkpoint {folder.name} has a manifest that is not as expected ({where}: {first['msg']})"
    except (OSError, ValueError, RecursionError) as error:
        return f"checkpoint {folder.name} has no readable manifest ({error})"
    if problem := find_problem(folder, manifest, hashes=True):
        return f"checkpoint {folder.name} is damaged: {problem}"
    return Found(folder, manifest.step, manifest.world_size, manifest.stage, manifest.state.model_dump())


def find_problem(folder: Path, manifest: Manifest, *, hashes: bool) -> str:
    """What differs between the manifest and the files; "" when nothing does."""
    if WEIGHTS["weights"] not in manifest.files:
        return f"its manifest lists no {WEIGHTS['weights']}"
    for name, record in manifest.files.items():
        path = folder / name
        try:
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != record.size:
                return f"{name} has {path.stat().st_size} bytes, not {record.size}"
            if hashes and sha256(path) != record.sha256:
                return f"{name} does not have the content that was written"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return ""


class HashingFile:
    """A binary file that hashes what is written to it, so that the manifest knows what the disk should hold."""

    def __init__(self, path: Path):
        self._file = path.open("wb")
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, data: Buffer) -> int:
        """Writes bytes; returns how many."""
        self._hash.update(data)
        self._size += memoryview(data).nbytes
        return self._file.write(data)

    def flush(self) -> None:
        """Hands everything to the system."""
        self._file.flush()

    def close(self) -> dict[str, Any]:
        """Forces the file to disk; returns its record for the manifest."""
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())
        return {"size": self._size, "sha256": self._hash.hexdigest()}


class RecordingWriter(TorchCheckpointEngine):
    """DeepSpeed's writer, which records every file and keeps an error for later.

    An error that left this rank's writer would leave the others waiting in a barrier; who saves asks for it afterwards.
    """

    def __init__(self, root: Path):
        super().__init__()
        self.root = root
        self.records: dict[str, dict[str, Any]] = {}
        self.error: str = ""

    def save(self, state_dict: Any, path: str) -> None:
        """Writes one of DeepSpeed's files."""
        # torch.save asks for no more than write and flush.
        self._write(Path(path), lambda file: torch.save(state_dict, cast("IO[bytes]", file)))

    def save_bytes(self, content: bytes, path: Path) -> None:
        """Writes a file that is not DeepSpeed's."""
        self._write(path, lambda file: file.write(content))

    def _write(self, path: Path, write: Callable[[HashingFile], object]) -> None:
        try:
            file = HashingFile(path)
            try:
                write(file)
            finally:
                record = file.close()
            self.records[str(path.relative_to(self.root))] = record
        except (OSError, RuntimeError) as error:  # torch reports a short write as a RuntimeError
            self.error = self.error or f"rank {dist.get_rank()} could not write {path.name}: {error}"
