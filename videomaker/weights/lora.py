"""Adapters from a file, put on a pipeline with their strength."""

from __future__ import annotations

import os
from pathlib import Path

from diffusers import AnimateDiffPipeline
from safetensors import SafetensorError, safe_open

from videomaker.errors import InputError


def parse_lora(value: str) -> tuple[Path, float]:
    """`FILE` or `FILE:scale`, as on the command line; the scale is 1 when there is none.

    Raises:
        InputError: the scale is not a finite number.
    """
    name, separator, scale = value.rpartition(":")
    if not separator or value.endswith(".safetensors") or Path(value).exists():
        return Path(value), 1.0
    try:
        number = float(scale)
    except ValueError:
        number = float("nan")
    if not abs(number) < float("inf"):
        raise InputError(f"--lora {value}: {scale!r} is no scale; write FILE or FILE:0.8")
    return Path(name), number


def load_lora(pipe: AnimateDiffPipeline, path: str | os.PathLike, *, scale: float = 1.0) -> str:
    """Puts the adapters of a safetensors file on `pipe`, beside those that are there; returns their name.

    Args:
        pipe: any AnimateDiff pipeline; the attention processors stay.
        path: with the names that diffusers reads, such as a training run exports.
        scale: how strongly they count.

    Raises:
        InputError: no such file, not safetensors, or it holds no adapter of this UNet.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"LoRA {path} does not exist; give a .safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
    except (SafetensorError, OSError) as error:
        raise InputError(f"LoRA {path} is not a safetensors file: {str(error).splitlines()[0]}") from error
    if not any("lora" in name.lower() for name in names):
        raise InputError(f"{path} holds no LoRA (its first tensor is {names[:1]}); weights are loaded with --weights")
    before = _scales(pipe)
    name = f"lora{len(before)}"
    try:
        pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name=name)
        pipe.set_adapters([*before, name], [*before.values(), scale])
    except (ValueError, RuntimeError, KeyError) as error:
        raise InputError(f"LoRA {path} does not fit this model: {str(error).strip().splitlines()[0]}") from error
    return name


def _scales(pipe: AnimateDiffPipeline) -> dict[str, float]:
    """The UNet's adapters and how strongly each counts now."""
    found: dict[str, float] = {}
    for module in pipe.unet.modules():
        for name, scale in getattr(module, "scaling", {}).items() if hasattr(module, "lora_A") else ():
            found.setdefault(name, scale * module.r[name] / module.lora_alpha[name])
    return found
