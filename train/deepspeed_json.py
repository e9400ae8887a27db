"""DeepSpeed's JSON, derived from the configuration, with the user's own laid over it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from videomaker.errors import InputError

from .config import TrainConfig

# What a DeepSpeed JSON must leave to the configuration, and the key to set instead.
_OURS = {"optimizer": "optimizer.*", "scheduler": "optimizer.schedule", "checkpoint": "checkpoint.resume"}


def deepspeed_json(config: TrainConfig, world_size: int) -> dict[str, Any]:
    """DeepSpeed's configuration for this run, with the user's own file (`config.deepspeed`) laid over it.

    Raises:
        InputError: the batch does not fit the devices, or the user's file is unreadable or contradicts `config`.
    """
    accumulation = config.accumulation(world_size)
    zero: dict[str, Any] = {"stage": config.zero.stage}
    if config.zero.offload != "none":
        zero["offload_optimizer"] = {"device": config.zero.offload, "pin_memory": torch.cuda.is_available()}
    if config.zero.offload_parameters != "none":
        zero["offload_param"] = {"device": config.zero.offload_parameters, "pin_memory": torch.cuda.is_available()}
    derived = {
        "train_batch_size": config.batch_size,
        "train_micro_batch_size_per_gpu": config.micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": config.optimizer.clip,
        "zero_optimization": zero,
        "bf16": {"enabled": config.precision == "bf16"},
        "fp16": {"enabled": config.precision == "fp16"},
        "zero_allow_untested_optimizer": True,  # ours is AdamW with a guard
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
        "wall_clock_breakdown": False,
    }
    if accumulation > 1 and config.precision == "bf16" and config.zero.stage >= 2:
        derived["data_types"] = {"grad_accum_dtype": "fp32"}
    return _overlay(derived, read_own_json(config.deepspeed), config.deepspeed) if config.deepspeed else derived


def read_own_json(path: str) -> dict[str, Any]:
    """The user's file.

    Raises:
        InputError: it is unreadable, or decides what the configuration does.
    """
    try:
        own = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"deepspeed={path} does not exist; give a DeepSpeed JSON, or leave it out") from error
    except json.JSONDecodeError as error:
        raise InputError(f"deepspeed={path}:{error.lineno}: {error.msg}") from error
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"deepspeed={path} cannot be read: {error}") from error
    if not isinstance(own, dict):
        raise InputError(f"deepspeed={path} is not a JSON object")
    for key, instead in _OURS.items():
        if key in own:
            raise InputError(f"deepspeed={path} has {key!r}, which the configuration decides; set {instead} instead")
    return own


def _overlay(derived: dict[str, Any], own: dict[str, Any], path: str, prefix: str = "") -> dict[str, Any]:
    """`own` over `derived`; a key that both have must agree, or be "auto"."""
    merged = dict(derived)
    for key, value in own.items():
        mine = derived.get(key)
        if isinstance(value, dict) and isinstance(mine, dict):
            merged[key] = _overlay(mine, value, path, f"{prefix}{key}.")
        elif key not in derived or mine is None:
            merged[key] = value
        elif value not in ("auto", mine):
            raise InputError(
                f"deepspeed={path} says {prefix}{key}={value!r}, the configuration {mine!r}; make them agree, "
                'or write "auto" in the file'
            )
    return merged
