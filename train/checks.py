"""What of a run can be refused before its libraries load: files that are not there, and what cannot fit."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import torch

from videomaker.errors import InputError

from .config import ModelConfig, TrainConfig
from .deepspeed_json import deepspeed_json, read_own_json
from .overrides import flatten, preset
from .ranks import assign_rank


def check_run(config: TrainConfig) -> None:
    """Refuses a run that could not begin, before DeepSpeed loads.

    Raises:
        InputError: a file is not there, or the batch, the size or the precision does not fit.
    """
    environment = dict(os.environ)
    assign_rank(environment)  # in a copy: who joins the group does it for good
    check_precision(config, "cuda" if torch.cuda.is_available() else "cpu")
    deepspeed_json(config, int(environment.get("WORLD_SIZE", "1")))
    _check_files(config, ("data.manifest", "model.path"))
    if factor := _vae_factor(config.model):
        check_size(config, factor)


def check_named(config: TrainConfig, *, memory: bool) -> None:
    """Refuses files that a configuration names and that are not there; those of its preset are perhaps yet to be made.

    Args:
        config: of a run that does not begin yet.
        memory: whether its memory was counted, which takes the name of a model instead of a folder.

    Raises:
        InputError: a file is not there, or a DeepSpeed JSON cannot be read.
    """
    base, now = flatten(preset(config.preset) if config.preset else TrainConfig()), flatten(config)
    keys = ("deepspeed", "data.manifest", *(() if memory else ("model.path",)))
    _check_files(config, tuple(key for key in keys if now[key] != base[key]))


def _check_files(config: TrainConfig, keys: tuple[str, ...]) -> None:
    if "deepspeed" in keys:  # how many ranks it is for, nobody knows yet
        read_own_json(config.deepspeed)
    for name in config.data.manifests if "data.manifest" in keys else ():
        if not name:
            raise InputError("data.manifest is not given; `videomaker data index` makes one")
        if "://" not in name and not Path(name).exists():
            raise InputError(f"data.manifest={name}: there is none; `videomaker data index` makes one")
    if "model.path" in keys and config.task != "autoencoder":
        check_folder(config.model)


def check_folder(model: ModelConfig) -> None:
    """Refuses a `model.path` that is no pipeline.

    Raises:
        InputError: names it.
    """
    if not (Path(model.path) / "model_index.json").is_file():
        raise InputError(f"model.path={model.path!r} is no diffusers pipeline folder (it has no model_index.json)")


def check_precision(config: TrainConfig, device_type: str) -> None:
    """Refuses a precision in which the device cannot compute.

    Raises:
        InputError: names others.
    """
    if config.precision == "fp16" and device_type == "cpu":
        raise InputError("precision=fp16 needs a GPU; on a CPU use fp32, bf16 or autocast")


def check_size(config: TrainConfig, factor: int) -> None:
    """Refuses a size that the VAE cannot halve as often as it does.

    Raises:
        InputError: names the nearest size.
    """
    for shape in {*config.data.shapes, replace(config.data, buckets=()).shapes[0]}:
        for key, size in (("height", shape.height), ("width", shape.width)):
            if size % factor:
                raise InputError(
                    f"data.{key}={size} is no multiple of {factor}: give {max(1, round(size / factor)) * factor}"
                )


def _vae_factor(model: ModelConfig) -> int | None:
    """Pixels of a latent's side; None where the file is not there or odd, about which loading says more."""
    try:
        config = json.loads((Path(model.vae or Path(model.path, "vae")) / "config.json").read_text(encoding="utf-8"))
        return 2 ** (len(config["block_out_channels"]) - 1)
    except (OSError, ValueError, KeyError, TypeError):
        return None
