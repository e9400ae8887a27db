"""DeepSpeed as this project uses it: the group of ranks, the choices of kernels, the engine."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from copy import deepcopy
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from pydantic import ValidationError
from torch import distributed as dist
from torch import nn

from videomaker.errors import InputError, first_line

from .checks import check_precision
from .config import TrainConfig
from .deepspeed_json import deepspeed_json
from .operators import load_operator
from .optimizer import build_optimizer, learning_rate
from .ranks import assign_rank, free_port

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

__all__ = [
    "computes_bf16", "deepspeed_json", "free_port", "from_rank_zero", "initialize", "learning_rate",
    "plain_gradient_norm", "set_numerics", "start_distributed",
]  # fmt: skip

Result = TypeVar("Result")


def start_distributed(say: Callable[[str], object] = print) -> torch.device:
    """Joins the launcher's process group, or makes one of a single process; returns this process's device.

    Args:
        say: hears what takes long.

    Raises:
        InputError: DeepSpeed has to build an operator and there is no compiler.
    """
    assign_rank()
    if torch.cuda.is_available():
        import deepspeed

        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        deepspeed.init_distributed("nccl", verbose=False)
        return device
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    load_operator("ShareMemCommBuilder", say)
    deepspeed.init_distributed("gloo", verbose=False)
    atexit.register(_leave_group)
    return torch.device("cpu")


def _leave_group() -> None:
    """Ends Gloo's threads, which now and then abort a process that ends while they run and so hide its exit code."""
    if dist.is_initialized():
        dist.destroy_process_group()


def from_rank_zero(function: Callable[[], Result]) -> Result:
    """What `function` returns on rank 0, on all ranks, which all must call this.

    Raises:
        InputError: on all ranks, when rank 0 raised one or could not read or write a file.
    """
    answer: list[Any] = [None, ""]
    if dist.get_rank() == 0:
        try:
            answer[0] = function()
        except (InputError, OSError) as error:
            answer[1] = str(error)
    dist.broadcast_object_list(answer, src=0)
    if answer[1]:
        raise InputError(answer[1])
    return answer[0]


def set_numerics(config: TrainConfig, device: torch.device) -> None:
    """Choices of kernels: the same bits in every run, and on a CPU the quicker attention for bf16.

    Raises:
        InputError: the device cannot compute in this precision.
    """
    check_precision(config, device.type)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Filling what is uninitialized costs time, and is for finding bugs.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # made at run time
    if config.precision == "autocast" and device.type == "cpu" and computes_bf16(device):
        torch.backends.cuda.enable_flash_sdp(False)  # holds for CPUs too, where its bf16 backward is slow


def computes_bf16(device: torch.device) -> bool:
    """Whether bf16 is quick there: a CPU without AVX-512 or Arm's bf16 needs thirty times as long as in fp32."""
    if device.type != "cpu":
        return True
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def initialize(
    learner: nn.Module, config: TrainConfig, ds_json: dict[str, Any], device: torch.device
) -> DeepSpeedEngine:
    """The DeepSpeed engine around `learner`, with optimizer state for its trainable parameters only.

    Raises:
        InputError: DeepSpeed does not take the user's own JSON, or the optimizer's library is not installed.
    """
    import deepspeed

    if config.deepspeed:
        _check_own_json(ds_json, config.deepspeed)
    named = {name: p for name, p in learner.named_parameters() if p.requires_grad}
    optimizer = build_optimizer(config, named, device)
    engine, *_ = deepspeed.initialize(
        model=learner,
        optimizer=optimizer,
        model_parameters=list(named.values()),
        config=ds_json,
        dist_init_required=False,
    )
    return engine


def _check_own_json(ds_json: dict[str, Any], path: str) -> None:
    from deepspeed import DeepSpeedConfig

    try:
        DeepSpeedConfig(deepcopy(ds_json))
    except Exception as error:  # a mistyped key, a value of another kind: each of its parts complains in its own way
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else first_line(error)
        raise InputError(f"deepspeed={path}: DeepSpeed does not take it ({reason}): correct the file") from error


def plain_gradient_norm(engine: DeepSpeedEngine) -> torch.Tensor | None:
    """The gradient's norm before clipping, as the parameters hold it before a step without ZeRO."""
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients) if gradients else None
