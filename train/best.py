"""The best weights of a run by a held-out measure, kept beside the checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file
from torch import distributed as dist

from videomaker.files import atomic_directory

from .average import gather_trained

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

FOLDER, WEIGHTS, ABOUT = "best", "weights.safetensors", "best.json"


class Best:
    """Keeps in `folder/best` the weights with which `measure` was lowest; "" keeps nothing.

    Args:
        folder: the run's.
        measure: a loss of `held_out.csv`.
        kind: "ema" or "weights", whichever is judged.
        start: the step that the run goes on from; what was kept after it, or by another measure, gives way.
    """

    def __init__(self, folder: Path, measure: str, kind: str, *, start: int):
        self.folder, self.measure, self.kind = folder / FOLDER, measure, kind
        kept = read_best(folder)
        same = bool(kept) and (kept["measure"], kept["kind"]) == (measure, kind) and kept["step"] <= start
        self.lowest = kept["value"] if same else float("inf")

    def offer(self, engine: DeepSpeedEngine, step: int, losses: Mapping[str, float]) -> bool:
        """Keeps the weights if they are the best so far; all ranks call it with the same `losses`."""
        if not self.measure:
            return False
        value = losses[self.measure]
        if not value < self.lowest:
            return False
        self.lowest = value
        tensors = gather_trained(engine, self.kind)
        if dist.get_rank() == 0:
            with atomic_directory(self.folder) as temporary:
                save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
                about = {"step": step, "measure": self.measure, "value": value, "kind": self.kind}
                about["losses"] = dict(losses)
                (temporary / ABOUT).write_text(json.dumps(about), encoding="utf-8")
        return True


def read_best(run: Path) -> dict:
    """What `best.json` says of the best weights of a run; empty without."""
    path = run / FOLDER / ABOUT
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
