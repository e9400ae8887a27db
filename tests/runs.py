"""What tests of whole training runs share: a tiny model with six clips, and what a run leaves behind."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
import yaml
from clips import write_clips
from tiny import tiny_pipeline


def write_configuration(folder: Path, **changes) -> Path:
    """A tiny model, six clips and the configuration of a run over them; returns the latter."""
    tiny_pipeline().save_pretrained(folder / "model")
    config = {
        "preset": "smoke",
        "model": {"path": str(folder / "model"), "attention_backend": "naive"},
        "data": {
            "manifest": str(write_clips(folder / "clips")),
            "num_frames": 2,
            "height": 16,
            "width": 16,
            "highlight": False,
        },
        "optimizer": {"learning_rate": 1e-3},
        "checkpoint": {"every": 2, "keep_last": 2},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, **changes}))
    return folder / "config.yaml"


def curve(run: Path, column: str = "loss") -> dict[int, float]:
    with (run / "metrics.csv").open(newline="") as file:
        return {int(row["step"]): float(row[column]) for row in csv.DictReader(file)}


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.learner.named_parameters()}
