"""Loading a checkpoint into an engine, also one that was cut for another number of ranks."""

from __future__ import annotations

import os
import shutil
from argparse import Namespace
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file
from torch import distributed as dist

from .average import set_average
from .checkpoint_files import TAG, WEIGHTS, Found
from .optimizer import SETTINGS

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


def needs_conversion(found: Found, world_size: int) -> bool:
    """Whether the optimizer's state is cut for another number of ranks; without ZeRO it is whole."""
    return found.stage > 0 and found.world_size != world_size


def load(engine: DeepSpeedEngine, found: Found, scratch: Path) -> None:
    """Restores weights, optimizer and loss scale from `found`; all ranks call it.

    For another number of ranks the engine must have been made with `{"checkpoint": {"load_universal": true}}`, and
    the converted checkpoint lies in `scratch`, a folder that all ranks see, while it is read.
    """
    if not needs_conversion(found, dist.get_world_size()):
        _load(engine, found.folder)
        _restore_average(engine, found)
        return
    universal = scratch / f".universal-{found.folder.name}.tmp"
    if dist.get_rank() == 0:
        _convert(found.folder / TAG, universal / TAG)
    dist.barrier()
    _load(engine, universal)
    _restore_average(engine, found)
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(universal)


def _load(engine: DeepSpeedEngine, folder: Path) -> None:
    """Loads a checkpoint, which brings the optimizer's settings with its state, and keeps those of this start."""
    kept = [{name: group[name] for name in SETTINGS if name in group} for group in engine.basic_optimizer.param_groups]
    engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=False)
    for group, own in zip(engine.basic_optimizer.param_groups, kept, strict=True):
        group.update(own)


def _convert(source: Path, output: Path) -> None:
    """Writes DeepSpeed's universal form of a checkpoint, which any number of ranks can load."""
    from deepspeed.checkpoint import ds_to_universal

    shutil.rmtree(output.parent, ignore_errors=True)
    options = {"num_extract_workers": 1, "num_merge_workers": 1, "keep_temp_folder": False}
    options |= {"strict": True, "inject_missing_state": False}
    with open(os.devnull, "w") as quiet, redirect_stdout(quiet), redirect_stderr(quiet):
        ds_to_universal.main(Namespace(input_folder=str(source), output_folder=str(output), **options))


def _restore_average(engine: DeepSpeedEngine, found: Found) -> None:
    """Cuts the moving average for this number of ranks: the optimizer's own state is saved without it."""
    path = found.folder / WEIGHTS["ema"]
    if path.is_file():
        set_average(engine, load_file(path))
