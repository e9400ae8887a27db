"""The optimizer: AdamW that refuses a step on demand and keeps a moving average, and its learning rate."""

from __future__ import annotations

import math

import torch
from torch import distributed as dist
from torch import nn

from .config import OptimizerConfig, TrainConfig


class _GuardedStep:
    """Mixed into an Adam: refuses an update on demand or when a gradient is not finite, and keeps a moving average.

    The average is part of the optimizer's state, so that ZeRO spreads it over the devices and saves it with the rest.
    DeepSpeed hands over flat fp32 master weights, whatever the stage and precision.
    """

    device: torch.device  # where collectives run; gradients may be offloaded to the CPU
    ema_decay: float = 0.0
    refuse: bool = False
    refused: bool = False

    @torch.no_grad()
    def step(self, closure=None):
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
        norms = torch.stack([p.grad.norm() for p in self._parameters()])
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


class GuardedAdamW(_GuardedStep, torch.optim.AdamW):
    """torch's AdamW with the guard and the moving average."""


def build_optimizer(config: TrainConfig, parameters: list[nn.Parameter], device: torch.device) -> torch.optim.Optimizer:
    """AdamW over one group of parameters; the one for host memory when the optimizer is offloaded from a GPU."""
    settings = config.optimizer
    arguments = {
        "lr": settings.learning_rate,
        "betas": settings.betas,
        "eps": settings.eps,
        "weight_decay": settings.weight_decay,
    }
    if config.zero.offload == "cpu" and device.type == "cuda":
        optimizer = _guarded_cpu_adam()(parameters, adamw_mode=True, **arguments)
    else:
        optimizer = GuardedAdamW(parameters, fused=True, **arguments)
    optimizer.device, optimizer.ema_decay = device, settings.ema_decay
    return optimizer


def _guarded_cpu_adam() -> type[torch.optim.Optimizer]:
    from deepspeed.ops.adam import DeepSpeedCPUAdam  # builds a C++ extension at its first use

    return type("GuardedCPUAdam", (_GuardedStep, DeepSpeedCPUAdam), {})


def learning_rate(settings: OptimizerConfig, step: int, steps: int) -> float:
    """The rate of optimizer step `step` of `steps`: linear warm-up, then constant or a half cosine to zero."""
    rate = settings.learning_rate * min(1.0, (step + 1) / (settings.warmup_steps + 1))
    if settings.schedule == "constant" or step < settings.warmup_steps:
        return rate
    progress = (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
    return rate * 0.5 * (1 + math.cos(math.pi * progress))
