"""Checkpoints that are complete or absent, and the way back from them.

A checkpoint folder holds DeepSpeed's own files (`deepspeed/`), the trained weights as safetensors, the run's state as
JSON, and `manifest.json`. It is written under a hidden name and renamed when all ranks are done, so no name that
`latest` or a resume looks at is ever incomplete. Nothing beside the checkpoints is touched, and none that is damaged.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save
from torch import distributed as dist

from videomaker.errors import InputError
from videomaker.files import atomic_path, sync

from .average import average_left_out, gather_trained, has_average
from .checkpoint_files import MANIFEST, TAG, WEIGHTS, Found, Manifest, RecordingWriter, find_problem, read
from .config import CheckpointConfig

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

_STEP = re.compile(r"step-(\d{8,})")
_OLD = ".replaced"  # a checkpoint that steps aside while the same step is written again


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; the ones before it are untouched."""


class Checkpoints:
    """The checkpoints of one run, in `folder`."""

    def __init__(self, folder: Path, settings: CheckpointConfig):
        self.folder = folder
        self.settings = settings
        self._damaged: set[int] = set()  # steps that a search found unusable

    def save(self, engine: DeepSpeedEngine, step: int, state: dict[str, Any], *, ema: bool) -> Path:
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
        self._make_room(temporary)
        writer = RecordingWriter(temporary)
        try:
            self._write(engine, writer, ema)
            self._publish(writer, final, {"step": step, "stage": engine.zero_optimization_stage(), "state": state})
        finally:
            if dist.get_rank() == 0:
                shutil.rmtree(temporary, ignore_errors=True)
        self._damaged.discard(step)
        self._prune(step)
        return final

    def _make_room(self, temporary: Path) -> None:
        """An empty folder that all ranks see."""
        error = ""
        if dist.get_rank() == 0:
            try:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
            except OSError as problem:
                error = f"{temporary.parent} cannot be written: {problem.strerror}"
        _agree(error)

    def _write(self, engine: DeepSpeedEngine, writer: RecordingWriter, ema: bool) -> None:
        from deepspeed.checkpoint.constants import UNIVERSAL_CHECKPOINT_INFO

        own_writer, engine.checkpoint_engine = engine.checkpoint_engine, writer
        try:
            with average_left_out(engine):
                engine.save_checkpoint(
                    str(writer.root),
                    tag=TAG,
                    client_state={UNIVERSAL_CHECKPOINT_INFO: {}},
                    save_latest=False,
                    exclude_frozen_parameters=True,
                )
        finally:
            engine.checkpoint_engine = own_writer
        for kind in ("weights", "ema") if ema and has_average(engine) else ("weights",):
            if tensors := gather_trained(engine, kind):
                writer.save_bytes(save(tensors, metadata={"format": "pt"}), writer.root / WEIGHTS[kind])

    def _publish(self, writer: RecordingWriter, final: Path, about: dict[str, Any]) -> None:
        """Agrees that every rank wrote everything, then gives the folder its name."""
        reports: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(reports, (writer.records, writer.error))
        error = next((error for _, error in reports if error), "")
        if not error and dist.get_rank() == 0:
            records = {name: record for part, _ in reports for name, record in part.items()}
            error = self._rename(writer.root, final, {**about, "world_size": len(reports), "files": records})
        _agree(error)

    def _rename(self, temporary: Path, final: Path, manifest: dict[str, Any]) -> str:
        aside = final.with_name(f".{final.name}{_OLD}.tmp")
        try:
            (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
            if problem := find_problem(temporary, Manifest.model_validate(manifest), hashes=False):
                return problem
            for path in (temporary / MANIFEST, temporary / TAG, temporary):
                sync(path)
            if final.exists():
                os.replace(final, aside)
            os.replace(temporary, final)
            sync(self.folder)
            shutil.rmtree(aside, ignore_errors=True)
            with atomic_path(self.folder / "latest") as latest:
                latest.write_text(final.name)
        except OSError as error:
            return str(error)
        return ""

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, damaged or not, ascending; folders of other names are not ours."""
        return sorted(int(match[1]) for path in self._folders() if (match := _STEP.fullmatch(path.name)))

    def _folders(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if path.is_dir()] if self.folder.is_dir() else []

    def _prune(self, newest: int) -> None:
        """Removes all up to `newest` but the last `keep_last` good ones and every `keep_every`-th."""
        if dist.get_rank() != 0:
            return
        every = self.settings.keep_every
        good = [step for step in self.steps() if step <= newest and step not in self._damaged]
        for step in good[: -self.settings.keep_last or None]:
            if not every or step % every:
                shutil.rmtree(self.folder / _name(step), ignore_errors=True)

    def newest_complete(self, report: Callable[[str], object] = print, *, clean: bool = True) -> Found | None:
        """The newest checkpoint whose files are all what the manifest says; `report` hears of the others.

        Args:
            report: takes a line.
            clean: remove what a write that was cut short left; only for the run that holds the folder's lock.

        Raises:
            InputError: there are checkpoints and every one is damaged; nothing was touched.
        """
        for folder in self._folders():
            if folder.name.startswith("step-") and not _STEP.fullmatch(folder.name):
                report(f"{folder.name} is not a checkpoint of this run: left as it is")
        if clean:
            self._restore_replaced()
        problems: list[str] = []
        for step in reversed(self.steps()):
            found = read(self.folder / _name(step))
            if isinstance(found, Found) and found.step != step:
                found = f"checkpoint {_name(step)} says that it is of step {found.step}"
            if isinstance(found, Found):
                self._clean(report, clean)
                for problem in problems:
                    report(f"{problem}; falling back to the checkpoint before it")
                return found
            self._damaged.add(step)
            problems.append(found)
        if problems:
            raise InputError(
                f"{self.folder} has {len(problems)} checkpoints and none can be used ({problems[0]}): bring one back "
                "from a copy, or start anew with another output=; nothing was changed"
            )
        self._clean(report, clean)
        return None

    def _clean(self, report: Callable[[str], object], clean: bool) -> None:
        for leftover in self.folder.glob(".*.tmp") if clean else ():
            report(f"removing {leftover.name}: its writing was cut short")
            shutil.rmtree(leftover, ignore_errors=True)

    def _restore_replaced(self) -> None:
        """Gives a checkpoint its name back that stood aside when the run was killed."""
        for aside in self.folder.glob(f".*{_OLD}.tmp"):
            original = self.folder / aside.name.removeprefix(".").removesuffix(f"{_OLD}.tmp")
            if not original.exists():
                os.replace(aside, original)


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


def _agree(error: str) -> None:
    """Raises rank 0's error on all ranks."""
    verdict = [error]
    dist.broadcast_object_list(verdict, src=0)
    if verdict[0]:
        raise CheckpointError(verdict[0])


def _name(step: int) -> str:
    return f"step-{step:08d}"
