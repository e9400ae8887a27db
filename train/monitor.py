"""A run as its owner sees it: a progress bar, CSV files, TensorBoard and, if asked for, Weights & Biases."""

from __future__ import annotations

import csv
import os
import resource
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from videomaker.errors import InputError
from videomaker.files import atomic_path

from .config import TrainConfig

_GIB = 2**30


class Table:
    """A CSV file with one row per step. A resumed run drops the rows after the step that it resumes from.

    What other settings add becomes a new column; where a row has no value for a column, its cell is empty.

    A run that begins at step 0 where a table already is keeps the old one beside the new: whoever removed the
    checkpoints may want the curve.
    """

    def __init__(self, path: Path, *, start: int):
        self.path = path
        self._fields: list[str] = []
        if not path.is_file():
            return
        rows = _read_rows(path)
        if rows and start == 0:
            os.replace(path, _unused(path))
        else:
            self._rewrite([row for row in rows if int(row["step"]) <= start])

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds a row; columns that the file lacks are written into it."""
        if not row.keys() <= set(self._fields):
            self._rewrite([*(_read_rows(self.path) if self._fields else []), row])
            return
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self._fields).writerow(row)

    def _rewrite(self, rows: list[Mapping[str, Any]]) -> None:
        self._fields = list(dict.fromkeys(name for row in rows for name in row))
        with atomic_path(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._fields)
            if rows:
                writer.writeheader()
            writer.writerows(rows)


def _read_rows(path: Path) -> list[dict[str, str]]:
    """All rows but those that a kill cut off."""
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = text[: text.rfind("\n") + 1].splitlines()
    rows = csv.DictReader(lines)
    return [row for row in rows if row.get("step", "").isdigit() and None not in row and None not in row.values()]


def _unused(path: Path) -> Path:
    """Such as `metrics.1.csv`: the first number that no earlier run has."""
    return next(name for number in count(1) if not (name := path.with_suffix(f".{number}{path.suffix}")).exists())


class Monitor:
    """Rank 0's view of the run; on other ranks it does nothing."""

    def __init__(self, folder: Path, config: TrainConfig, *, start: int, active: bool):
        self.active = active
        if not active:
            return
        self._tables = {name: Table(folder / f"{name}.csv", start=start) for name in ("metrics", "held_out")}
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)
        self._wandb = _start_wandb(folder, config) if config.log.wandb else None
        self._bar = tqdm(total=config.steps, initial=start, desc=folder.name, unit="step", dynamic_ncols=True)

    def step(self, shown: Mapping[str, float]) -> None:
        """Moves the progress bar by one step."""
        if self.active:
            self._bar.set_postfix({name: f"{value:.3g}" for name, value in shown.items()}, refresh=False)
            self._bar.update()

    def record(self, table: str, step: int, values: Mapping[str, float]) -> None:
        """Writes a row of "metrics" or "held_out"."""
        if not self.active:
            return
        self._tables[table].append({"step": step, **values})
        for name, value in values.items():
            self._board.add_scalar(f"{table}/{name}", value, step)
        if self._wandb:
            self._wandb.log({f"{table}/{name}": value for name, value in values.items()}, step=step)

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Shows a picture `[H, W, 3]`, uint8."""
        if self.active:
            self._board.add_image(name, pixels, step, dataformats="HWC")
            if self._wandb:
                from wandb import Image

                self._wandb.log({name: Image(pixels)}, step=step)

    def say(self, message: str) -> None:
        """Prints a line without breaking the progress bar."""
        if self.active:
            self._bar.write(message)

    def close(self) -> None:
        """Flushes everything."""
        if self.active:
            self._bar.close()
            self._board.close()
            if self._wandb:
                self._wandb.finish()


def memory_gib(device: torch.device) -> float:
    """Peak memory in GiB: of the GPU, or of this process where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _GIB


def _start_wandb(folder: Path, config: TrainConfig):
    try:
        import wandb
    except ImportError as error:
        raise InputError(f"log.wandb={config.log.wandb!r} needs wandb: pip install wandb, or leave it empty") from error
    return wandb.init(project=config.log.wandb, name=folder.name, dir=str(folder), resume="allow", id=folder.name)
