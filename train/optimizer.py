"""The optimizer by name, each from the library that keeps it, and its learning rate.

Whatever its name, it refuses a step on demand and keeps a moving average. What is not installed is said, not replaced.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import distributed as dist
from torch import nn

from videomaker.attention import is_spatial_self_attention
from videomaker.errors import InputError

from .config import OptimizerConfig, TrainConfig
from .operators import load_operator

SETTINGS = ("betas", "eps", "weight_decay", "rate_factor")  # of a group: what the configuration says, not a run's state


class _GuardedStep(torch.optim.Optimizer):
    """Mixed into an optimizer: refuses an update on demand or with a gradient that is not finite; keeps an average.

    The average is part of the optimizer's state, so that ZeRO spreads it over the devices and saves it with the rest.
    DeepSpeed hands over flat fp32 master weights, whatever the stage and precision.
    """

    device: torch.device  # where collectives run; gradients may be offloaded to the CPU
    ema_decay: float = 0.0
    refuse: bool = False
    refused: bool = False

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        self.refused = self.refuse or not self._gradients_finite()
        if self.refused:
            return None
        super().step(closure)
        if self.ema_decay:
            self._update_average()
        return None

    def _parameters(self) -> list[torch.Tensor]:
        return [p for group in self.param_groups for p in group["params"] if p.grad is not None]

    def _gradients_finite(self) -> bool:
        """Whether every rank's share of the gradient is finite: all ranks take the same decision."""
        norms = torch.stack([p.grad.norm() for p in self._parameters() if p.grad is not None])
        finite = norms.isfinite().all().float().to(self.device)
        if dist.get_world_size() > 1:
            dist.all_reduce(finite, op=dist.ReduceOp.MIN)
        return bool(finite)

    def _update_average(self) -> None:
        for parameter in self._parameters():
            state = self.state[parameter]
            if "ema" not in state:
                state["ema"] = parameter.detach().clone()
            state["ema"].lerp_(parameter, 1 - self.ema_decay)


def build_optimizer(
    config: TrainConfig, named: Mapping[str, nn.Parameter], device: torch.device
) -> torch.optim.Optimizer:
    """The optimizer that `config.optimizer.name` names, over one group of parameters for every rate.

    Args:
        config: of the run.
        named: the trained parameters by name.
        device: of the run; with `zero.offload=cpu` on a GPU, AdamW is the one for host memory.

    Raises:
        InputError: its library is not installed or cannot run there.
    """
    settings = config.optimizer
    cls, arguments = _choose(settings, device, on_host=config.zero.offload == "cpu")
    guarded = type(f"Guarded{cls.__name__}", (_GuardedStep, cls), {})
    optimizer = guarded(parameter_groups(settings, named), lr=settings.learning_rate, **arguments)
    optimizer.device, optimizer.ema_decay = device, settings.ema_decay
    return optimizer


def _choose(
    settings: OptimizerConfig, device: torch.device, *, on_host: bool = False
) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """The optimizer's class and its arguments but the rate; `on_host`: the weights lie in the CPU's memory."""
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


def parameter_groups(settings: OptimizerConfig, named: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
    """Groups for the optimizer, each with its `rate_factor`: its rate as a multiple of `learning_rate`."""
    rates = {"attn1": settings.attn1_learning_rate, "motion": settings.motion_learning_rate}
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in named.items():
        kind = "motion" if "motion_modules" in name.split(".") else "attn1" if is_spatial_self_attention(name) else ""
        factor = (rates.get(kind) or settings.learning_rate) / settings.learning_rate
        groups.setdefault(factor, []).append(parameter)
    return [{"params": parameters, "rate_factor": factor} for factor, parameters in groups.items()]


def set_rate(groups: Iterable[dict[str, Any]], rate: float) -> None:
    """Gives every group the rate of this step times its own factor."""
    for group in groups:
        group["lr"] = rate * group.get("rate_factor", 1.0)


def learning_rate(settings: OptimizerConfig, step: int, steps: int) -> float:
    """The rate of optimizer step `step` of `steps`: linear warm-up, then constant or a half cosine to zero."""
    rate = settings.learning_rate * min(1.0, (step + 1) / (settings.warmup_steps + 1))
    if settings.schedule == "constant" or step < settings.warmup_steps:
        return rate
    progress = (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
    return rate * 0.5 * (1 + math.cos(math.pi * progress))
