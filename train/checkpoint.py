"""Checkpoints that are complete or absent, and the way back from them.

A checkpoint folder holds DeepSpeed's own files (`deepspeed/`), the trained weights as safetensors, the run's state as
JSON, and `manifest.json`: size and SHA-256 of every other file, as they were handed to the disk. It is written under
a hidden name and renamed when all ranks are done, so no name that `latest` or a resume looks at is ever incomplete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from argparse import Namespace
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from safetensors.torch import load_file, save
from torch import distributed as dist

from videomaker.errors import InputError
from videomaker.files import atomic_path, sha256

from .config import CheckpointConfig
from .engine import gather_trained, set_average

_MANIFEST = "manifest.json"
_TAG = "deepspeed"
WEIGHTS = {"weights": "trained.safetensors", "ema": "ema.safetensors"}


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; the ones before it are untouched."""


class _HashingFile:
    """A binary file that hashes what is written to it, so that the manifest knows what the disk should hold."""

    def __init__(self, path: Path):
        self._file = path.open("wb")
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, data) -> int:
        self._hash.update(data)
        self._size += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> dict[str, Any]:
        """Forces the file to disk; returns its record for the manifest."""
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())
        return {"size": self._size, "sha256": self._hash.hexdigest()}


class _RecordingWriter(TorchCheckpointEngine):
    """DeepSpeed's writer, which records every file and keeps an error for later.

    An error that left this rank's writer would leave the others waiting in a barrier; `save` asks for it afterwards.
    """

    def __init__(self, root: Path):
        super().__init__()
        self.root = root
        self.records: dict[str, dict[str, Any]] = {}
        self.error: str = ""

    def save(self, state_dict, path: str) -> None:
        self._write(Path(path), lambda file: torch.save(state_dict, file))

    def save_bytes(self, content: bytes, path: Path) -> None:
        """Writes a file that is not DeepSpeed's."""
        self._write(path, lambda file: file.write(content))

    def _write(self, path: Path, write) -> None:
        try:
            file = _HashingFile(path)
            try:
                write(file)
            finally:
                record = file.close()
            self.records[str(path.relative_to(self.root))] = record
        except (OSError, RuntimeError) as error:  # torch reports a short write as a RuntimeError
            self.error = self.error or f"rank {dist.get_rank()} could not write {path.name}: {error}"


@dataclass(frozen=True)
class Found:
    """A complete checkpoint: its folder, its step, and how it was written."""

    folder: Path
    step: int
    world_size: int
    stage: int
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, in `folder`."""

    def __init__(self, folder: Path, settings: CheckpointConfig):
        self.folder = folder
        self.settings = settings

    def save(self, engine, step: int, state: dict[str, Any], *, ema: bool) -> Path:
        """Writes the checkpoint of `step`; all ranks must call it.

        Args:
            engine: the DeepSpeed engine.
            step: optimizer steps done.
            state: what else a resume needs, JSON-able.
            ema: whether the optimizer keeps a moving average.

        Raises:
            CheckpointError: on all ranks, when one of them could not write; nothing is left behind.
        """
        final, temporary = self.folder / _name(step), self.folder / f".{_name(step)}.tmp"
        if dist.get_rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        dist.barrier()
        writer = _RecordingWriter(temporary)
        try:
            self._write(engine, writer, ema)
            self._publish(writer, final, {"step": step, "stage": engine.zero_optimization_stage(), "state": state})
        finally:
            if dist.get_rank() == 0:
                shutil.rmtree(temporary, ignore_errors=True)
        self._prune()
        return final

    def _write(self, engine, writer: _RecordingWriter, ema: bool) -> None:
        from deepspeed.checkpoint.constants import UNIVERSAL_CHECKPOINT_INFO

        own_writer, engine.checkpoint_engine = engine.checkpoint_engine, writer
        try:
            engine.save_checkpoint(
                str(writer.root),
                tag=_TAG,
                client_state={UNIVERSAL_CHECKPOINT_INFO: {}},
                save_latest=False,
                exclude_frozen_parameters=True,
            )
        finally:
            engine.checkpoint_engine = own_writer
        for kind in ("weights", "ema") if ema else ("weights",):
            if tensors := gather_trained(engine, kind):
                writer.save_bytes(save(tensors, metadata={"format": "pt"}), writer.root / WEIGHTS[kind])

    def _publish(self, writer: _RecordingWriter, final: Path, about: dict[str, Any]) -> None:
        """Agrees that every rank wrote everything, then gives the folder its name."""
        reports: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(reports, (writer.records, writer.error))
        error = next((error for _, error in reports if error), "")
        if not error and dist.get_rank() == 0:
            records = {name: record for part, _ in reports for name, record in part.items()}
            error = self._rename(writer.root, final, {**about, "world_size": len(reports), "files": records})
        verdict = [error]
        dist.broadcast_object_list(verdict, src=0)
        if verdict[0]:
            raise CheckpointError(verdict[0])

    def _rename(self, temporary: Path, final: Path, manifest: dict[str, Any]) -> str:
        try:
            (temporary / _MANIFEST).write_text(json.dumps(manifest, indent=1))
            if problem := _problem(temporary, manifest, hashes=False):
                return problem
            for path in (temporary / _MANIFEST, temporary / _TAG, temporary):
                _sync(path)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(temporary, final)
            _sync(self.folder)
            with atomic_path(self.folder / "latest") as latest:
                latest.write_text(final.name)
        except OSError as error:
            return str(error)
        return ""

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending."""
        return sorted(int(path.name.removeprefix("step-")) for path in self.folder.glob("step-*"))

    def _prune(self) -> None:
        """Removes all but the last `keep_last` and every `keep_every`-th."""
        if dist.get_rank() != 0:
            return
        every = self.settings.keep_every
        for step in self.steps()[: -self.settings.keep_last or None]:
            if not every or step % every:
                shutil.rmtree(self.folder / _name(step), ignore_errors=True)

    def newest_complete(self, report=print) -> Found | None:
        """The newest checkpoint whose files are all what the manifest says; `report` hears of the others.

        Leftovers of writes that were cut short are removed.
        """
        for leftover in self.folder.glob(".*.tmp"):
            report(f"removing {leftover.name}: its writing was cut short")
            shutil.rmtree(leftover, ignore_errors=True)
        for step in reversed(self.steps()):
            found = read(self.folder / _name(step))
            if isinstance(found, Found):
                return found
            report(f"{found}; falling back to the checkpoint before it")
        return None


def read(folder: Path) -> Found | str:
    """The checkpoint in `folder` after a check of every file, or what is wrong with it."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
    except (OSError, ValueError) as error:
        return f"checkpoint {folder.name} has no readable manifest ({error})"
    if problem := _problem(folder, manifest, hashes=True):
        return f"checkpoint {folder.name} is damaged: {problem}"
    return Found(folder, manifest["step"], manifest["world_size"], manifest["stage"], manifest["state"])


def _problem(folder: Path, manifest: dict[str, Any], *, hashes: bool) -> str:
    for name, record in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != record["size"]:
            return f"{name} has {path.stat().st_size} bytes, not {record['size']}"
        if hashes and sha256(path) != record["sha256"]:
            return f"{name} does not have the content that was written"
    return ""


def needs_conversion(found: Found, world_size: int) -> bool:
    """Whether the optimizer's state is cut for another number of ranks; without ZeRO it is whole."""
    return found.stage > 0 and found.world_size != world_size


def load(engine, found: Found) -> None:
    """Restores weights, optimizer and loss scale from `found`; all ranks call it.

    For another number of ranks the engine must have been made with `{"checkpoint": {"load_universal": true}}`.
    """
    if not needs_conversion(found, dist.get_world_size()):
        engine.load_checkpoint(str(found.folder), tag=_TAG, load_module_strict=False)
        return
    universal = found.folder.parent / f".universal-{found.folder.name}.tmp"
    if dist.get_rank() == 0:
        _convert(found.folder / _TAG, universal / _TAG)
    dist.barrier()
    engine.load_checkpoint(str(universal), tag=_TAG, load_module_strict=False)
    _restore_average(engine, found)
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(universal)


def _convert(source: Path, output: Path) -> None:
    """Writes DeepSpeed's universal form of a checkpoint, which any number of ranks can load."""
    from deepspeed.checkpoint import ds_to_universal

    shutil.rmtree(output.parent, ignore_errors=True)
    options = {"num_extract_workers": 1, "num_merge_workers": 1, "keep_temp_folder": False}
    options |= {"strict": True, "inject_missing_state": False}
    with open(os.devnull, "w") as quiet, redirect_stdout(quiet), redirect_stderr(quiet):
        ds_to_universal.main(Namespace(input_folder=str(source), output_folder=str(output), **options))


def _restore_average(engine, found: Found) -> None:
    """Cuts the moving average anew for this number of ranks: the universal form leaves it out."""
    path = found.folder / WEIGHTS["ema"]
    if path.is_file():
        set_average(engine, load_file(path))


def check_stage(found: Found, stage: int) -> None:
    """Refuses a checkpoint of another ZeRO stage, whose files DeepSpeed cannot map.

    Raises:
        InputError: the stages differ.
    """
    if found.stage != stage:
        raise InputError(
            f"checkpoint {found.folder} was written with zero.stage={found.stage}, this run has {stage}; "
            f"set zero.stage={found.stage}, or checkpoint.resume=none for a new run"
        )


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
