"""Optimizers by name, each from the library that keeps it; what is not installed is said, not replaced."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from videomaker.errors import InputError

from .config import OptimizerConfig
from .operators import load_operator


def choose(
    settings: OptimizerConfig, device: torch.device, *, on_host: bool = False
) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """The optimizer's class and its arguments but the rate.

    Args:
        settings: name, betas, eps and weight decay.
        device: of the run.
        on_host: the weights it updates lie in the CPU's memory.

    Raises:
        InputError: its library is not installed.
    """
    adam = {"betas": settings.betas, "eps": settings.eps, "weight_decay": settings.weight_decay}
    if settings.name == "adamw":
        if on_host and device.type == "cuda":
            from deepspeed.ops.adam import DeepSpeedCPUAdam

            load_operator("CPUAdamBuilder")
            return DeepSpeedCPUAdam, {**adam, "adamw_mode": True}
        return torch.optim.AdamW, {**adam, "fused": True}
    if settings.name == "adamw8bit":
        return _adamw_8bit(), adam
    if settings.name == "adafactor":
        return torch.optim.Adafactor, {"weight_decay": settings.weight_decay}
    return _prodigy(), {**adam, "safeguard_warmup": True, "use_bias_correction": True}


def _adamw_8bit() -> type[torch.optim.Optimizer]:
    if find_spec("bitsandbytes"):
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit
    if find_spec("torchao"):
        import torchao.optim

        return torchao.optim.AdamW8bit
    raise InputError("optimizer.name=adamw8bit needs bitsandbytes or torchao: pip install bitsandbytes, or take adamw")


def _prodigy() -> type[torch.optim.Optimizer]:
    if not find_spec("prodigyopt"):
        raise InputError("optimizer.name=prodigy needs prodigyopt: pip install prodigyopt, or take adamw")
    from prodigyopt import Prodigy

    return Prodigy
