"""DeepSpeed as this project uses it: its JSON derived from the configuration, its optimizer, the weights it holds."""

from __future__ import annotations

import atexit
import json
import math
import os
import socket
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import nn

from videomaker.errors import InputError

from .config import OptimizerConfig, TrainConfig

# What a DeepSpeed JSON must leave to the configuration, and the key to set instead.
_OURS = {"optimizer": "optimizer.*", "scheduler": "optimizer.schedule", "checkpoint": "checkpoint.resume"}


def start_distributed() -> torch.device:
    """Joins the launcher's process group, or makes one of a single process; returns this process's device."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    single = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    if "RANK" not in os.environ:
        os.environ.update(single, MASTER_PORT=str(free_port()))
    import deepspeed

    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        deepspeed.init_distributed("nccl", verbose=False)
        return device
    deepspeed.init_distributed("gloo", verbose=False)
    atexit.register(_leave_group)
    return torch.device("cpu")


def _leave_group() -> None:
    """Ends Gloo's threads, which now and then abort a process that ends while they run and so hide its exit code."""
    if dist.is_initialized():
        dist.destroy_process_group()


def set_numerics(config: TrainConfig, device: torch.device) -> None:
    """Choices of kernels: the same bits in every run, and on a CPU the quicker attention for bf16.

    Raises:
        InputError: the device cannot compute in this precision.
    """
    if config.precision == "fp16" and device.type == "cpu":
        raise InputError("precision=fp16 needs a GPU; on a CPU use fp32, bf16 or autocast")
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # costs time, and is for finding bugs
    if config.precision == "autocast" and device.type == "cpu" and computes_bf16(device):
        torch.backends.cuda.enable_flash_sdp(False)  # holds for CPUs too, where its bf16 backward is slow


def computes_bf16(device: torch.device) -> bool:
    """Whether bf16 is quick there: a CPU without AVX-512 or Arm's bf16 needs thirty times as long as in fp32."""
    if device.type != "cpu":
        return True
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def free_port() -> int:
    """A TCP port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def deepspeed_json(config: TrainConfig, world_size: int) -> dict[str, Any]:
    """DeepSpeed's configuration for this run, with the user's own file (`config.deepspeed`) laid over it.

    Raises:
        InputError: the batch does not fit the devices, or the user's file is unreadable or contradicts `config`.
    """
    accumulation = config.accumulation(world_size)
    zero: dict[str, Any] = {"stage": config.zero.stage}
    if config.zero.offload != "none":
        zero["offload_optimizer"] = {"device": config.zero.offload, "pin_memory": torch.cuda.is_available()}
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
    return _overlay(derived, _read_json(config.deepspeed), config.deepspeed) if config.deepspeed else derived


def _read_json(path: str) -> dict[str, Any]:
    try:
        own = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"deepspeed={path} does not exist; give a DeepSpeed JSON, or leave it out") from error
    except json.JSONDecodeError as error:
        raise InputError(f"deepspeed={path}:{error.lineno}: {error.msg}") from error
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


def initialize(learner: nn.Module, config: TrainConfig, ds_json: dict[str, Any], device: torch.device):
    """The DeepSpeed engine around `learner`, with optimizer state for its trainable parameters only."""
    import deepspeed

    parameters = [p for p in learner.parameters() if p.requires_grad]
    optimizer = build_optimizer(config, parameters, device)
    engine, *_ = deepspeed.initialize(
        model=learner, optimizer=optimizer, model_parameters=parameters, config=ds_json, dist_init_required=False
    )
    return engine


def plain_gradient_norm(engine) -> torch.Tensor | None:
    """The gradient's norm before clipping, as the parameters hold it before a step without ZeRO."""
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients) if gradients else None


def gather_trained(engine, kind: str = "weights") -> dict[str, torch.Tensor]:
    """The trained parameters in fp32, whole, on the CPU of rank 0 (empty elsewhere). All ranks must call it.

    Args:
        engine: the DeepSpeed engine.
        kind: "weights" (the fp32 masters) or "ema".
    """
    gathered = {}
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        full = _full_tensor(engine, parameter, kind)
        if dist.get_rank() == 0:
            gathered[name] = full.detach().to("cpu", torch.float32, copy=True)
    return gathered


def _full_tensor(engine, parameter: nn.Parameter, kind: str) -> torch.Tensor:
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if engine.zero_optimization_stage() == 0:
        master = _unpartitioned_masters(engine).get(parameter, parameter)
        return engine.basic_optimizer.state[master]["ema"] if kind == "ema" else master
    if kind == "ema":
        return safe_get_full_optimizer_state(parameter, "ema")
    return safe_get_full_fp32_param(parameter)


def _unpartitioned_masters(engine) -> dict[nn.Parameter, torch.Tensor]:
    """Without ZeRO: the fp32 master of every half-precision parameter; in fp32 a parameter is its own."""
    if not hasattr(engine.optimizer, "fp32_groups"):
        return {}
    pairs = zip(engine.optimizer.fp16_groups, engine.optimizer.fp32_groups, strict=True)
    return {half: master for halves, masters in pairs for half, master in zip(halves, masters, strict=True)}


def set_average(engine, average: dict[str, torch.Tensor]) -> None:
    """Gives every rank its share of a moving average that is whole in `average`, by parameter name."""
    by_parameter = {
        parameter: average[name].flatten() for name, parameter in engine.module.named_parameters() if name in average
    }
    state = engine.basic_optimizer.state
    for master, pieces in _partitions(engine, by_parameter):
        state[master]["ema"] = master.detach().clone()
        for start, piece in pieces:
            state[master]["ema"].narrow(0, start, piece.numel()).copy_(piece)


def _partitions(engine, whole: dict[nn.Parameter, torch.Tensor]):
    """This rank's flat fp32 masters, each with `(offset, values)` of the parameters' parts that lie in it."""
    zero = engine.optimizer
    if engine.zero_optimization_stage() < 3:
        (master,) = engine.basic_optimizer.param_groups[0]["params"]
        mappings = [(p._hp_mapping, values) for p, values in whole.items() if p._hp_mapping is not None]
        yield (
            master,
            [
                (
                    m.hp_fragment_address.start,
                    values.narrow(0, m.lp_fragment_address.start, m.lp_fragment_address.numel),
                )
                for m, values in mappings
            ],
        )
        return
    for master, parameters in zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True):
        pieces, start = [], 0
        for parameter in parameters:
            size = parameter.partition_numel()
            pieces.append((start, whole[parameter][dist.get_rank() * size :][:size]))
            start += size
        yield master, pieces
