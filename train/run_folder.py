"""What a run's folder tells of how it came about: every configuration with the step it began at, versions, commit."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from videomaker.environment import machine, versions
from videomaker.files import atomic_path

from .config import TrainConfig
from .overrides import save_config

STARTS = "starts.jsonl"  # a line for every start


def record_start(
    config: TrainConfig, ds_json: dict[str, Any], *, step: int, world_size: int, device: torch.device
) -> None:
    """Writes `config.yaml` and `deepspeed.json`, keeps what they replace in `configs/`, and adds a line to `STARTS`."""
    folder = Path(config.output)
    text = save_config(config)
    _write(folder / "config.yaml", text)
    _write(folder / "deepspeed.json", json.dumps(ds_json, indent=2))
    line = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "step": step,
        "config": _keep(folder / "configs", step, text),
        "ranks": world_size,
        "commit": source_commit(),
        "versions": versions(),
        "machine": machine(device),
    }
    with (folder / STARTS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _keep(folder: Path, step: int, text: str) -> str:
    """The name of the file in `folder` that holds this configuration; a new one unless the newest does."""
    kept = sorted(folder.glob("step-*.yaml"), key=lambda path: path.stat().st_mtime_ns)
    if kept and kept[-1].read_text(encoding="utf-8") == text:
        return f"{folder.name}/{kept[-1].name}"
    number, name = 1, f"step-{step:08d}.yaml"
    while (folder / name).exists():  # began at this step before, and made no checkpoint
        number += 1
        name = f"step-{step:08d}-{number}.yaml"
    _write(folder / name, text)
    return f"{folder.name}/{name}"


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def source_commit() -> str:
    """The git commit of the source tree, "unknown" outside of one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
