"""Tensors that a file holds and a model, as its configuration says, has no place for.

One is told by name; many mean that the configuration, or the file, is another model's: a loader would leave out whole
layers in silence.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from videomaker.errors import InputError
from videomaker.model_files import check_numbers, safetensors_header

from .numbers import check_usable
from .sources import variant_of

_MOST_UNKNOWN = 0.01  # of a file's tensors
_STEM = "diffusion_pytorch_model"
# Position tables are constants, which files have or not; old VAEs name their attention in another way.
_CONSTANT = re.compile(r".*(\.pe|position_ids)")
_RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

logger = logging.getLogger(__name__)


def is_another_model(num_unknown: int, num_tensors: int) -> bool:
    """Whether so many of a file's tensors are unknown that it belongs to another architecture."""
    return num_unknown > max(1, _MOST_UNKNOWN * num_tensors) or num_unknown == num_tensors > 0


def check_left_out(folder: Path, unknown: Sequence[str], num_tensors: int) -> None:
    """Warns of one or a few tensors of a model's folder that were left out.

    Raises:
        InputError: there are more.
    """
    unknown = sorted(name for name in unknown if not _CONSTANT.fullmatch(name))
    if is_another_model(len(unknown), num_tensors):
        raise InputError(
            f"{folder}: {len(unknown)} of {num_tensors} tensors have no place in what its config.json says, such as "
            f"{unknown[0]}: it is another model's configuration, fetch the whole folder again"
        )
    if unknown:
        logger.warning("%s: left out, since its config.json has no place for them: %s", folder, ", ".join(unknown))


def check_all_loaded(model: torch.nn.Module, folder: Path) -> None:
    """Compares a part of diffusers' with the file that it came from, and looks at its numbers.

    Args:
        model: as it was loaded.
        folder: of its files.

    Raises:
        InputError: as `check_left_out` and `numbers.check_usable`.
    """
    known, names = model.state_dict().keys(), _tensor_names(folder)
    check_left_out(folder, [name for name in names if name not in known and _renamed(name) not in known], len(names))
    check_usable(model, folder)


def _renamed(name: str) -> str:
    layer, _, parameter = name.rpartition(".")
    layer, _, last = layer.rpartition(".")
    return f"{layer}.{_RENAMED.get(last, last)}.{parameter}"


def _tensor_names(folder: Path) -> Collection[str]:
    """The names in the file, or the shards, that diffusers loads from a folder."""
    variant = variant_of(folder)
    ending = f".{variant}" if variant else ""
    if (file := folder / f"{_STEM}{ending}.safetensors").is_file():
        check_numbers(file, header := safetensors_header(file))
        return header
    if (file := folder / f"{_STEM}.safetensors.index{ending}.json").is_file():
        return json.loads(file.read_text(encoding="utf-8"))["weight_map"]
    if (file := folder / f"{_STEM}{ending}.bin").is_file():
        return torch.load(file, map_location="meta", weights_only=True)
    return ()
