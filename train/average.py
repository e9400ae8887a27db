"""The trained weights and their moving average as the engine holds them: whole on one rank, cut over all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed as dist
from torch import nn

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


def gather_trained(engine: DeepSpeedEngine, kind: str = "weights") -> dict[str, torch.Tensor]:
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


def _full_tensor(engine: DeepSpeedEngine, parameter: nn.Parameter, kind: str) -> torch.Tensor:
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if engine.zero_optimization_stage() == 0:
        master = _unpartitioned_masters(engine).get(parameter, parameter)
        return engine.basic_optimizer.state[master]["ema"] if kind == "ema" else master
    if kind == "weights":
        return safe_get_full_fp32_param(parameter)
    if engine.zero_optimization_stage() == 3:
        return safe_get_full_optimizer_state(parameter, "ema")
    return _joined_average(engine, parameter)


def _joined_average(engine: DeepSpeedEngine, parameter: nn.Parameter) -> torch.Tensor:
    """ZeRO 1 and 2: the average from every rank's part. DeepSpeed's own way forgets what a checkpoint left out."""
    whole = torch.zeros_like(parameter, dtype=torch.float32).flatten()
    part = _of_zero(parameter)._hp_mapping  # None on the ranks that hold none of it
    if part is not None:
        flat = engine.basic_optimizer.state[_flat_master(engine, part)]["ema"]
        _fragment(part.lp_fragment_address, whole).copy_(_fragment(part.hp_fragment_address, flat))
    dist.all_reduce(whole, group=_of_zero(parameter)._dp_group)
    return whole.view_as(parameter)


def _of_zero(parameter: nn.Parameter) -> Any:
    """The parameter with what ZeRO hangs on it, which torch's types do not know."""
    return parameter


def _flat_master(engine: DeepSpeedEngine, part: Any) -> torch.Tensor:
    """This rank's flat fp32 weights that a parameter's part lies in."""
    (master,) = engine.basic_optimizer.param_groups[part.param_group_index]["params"]
    return master


def _unpartitioned_masters(engine: DeepSpeedEngine) -> dict[nn.Parameter, torch.Tensor]:
    """Without ZeRO: the fp32 master of every half-precision parameter; in fp32 a parameter is its own."""
    if not hasattr(engine.optimizer, "fp32_groups"):
        return {}
    pairs = zip(engine.optimizer.fp16_groups, engine.optimizer.fp32_groups, strict=True)
    return {half: master for halves, masters in pairs for half, master in zip(halves, masters, strict=True)}


@contextmanager
def average_left_out(engine: DeepSpeedEngine) -> Iterator[None]:
    """While this lasts, the optimizer's state is without the average, which a checkpoint has in a file of its own."""
    state = engine.basic_optimizer.state
    averages = {master: values.pop("ema") for master, values in state.items() if "ema" in values}
    try:
        yield
    finally:
        for master, average in averages.items():
            state[master]["ema"] = average


def has_average(engine: DeepSpeedEngine) -> bool:
    """Whether the optimizer keeps an average by now: not before its first step."""
    return any("ema" in values for values in engine.basic_optimizer.state.values())


@contextmanager
def average_in_place(engine: DeepSpeedEngine, *, wanted: bool = True) -> Iterator[bool]:
    """While this lasts, the model computes with the moving average; then with the weights to the bit as before.

    All ranks must enter it. Gives whether there is an average and it is `wanted`.
    """
    if not wanted or not has_average(engine):
        yield False
        return
    trained = [p for p in engine.module.parameters() if p.requires_grad]
    kept = [_exchange(engine, p, _full_tensor(engine, p, "ema")) for p in trained]
    try:
        yield True
    finally:
        for parameter, value in zip(trained, kept, strict=True):
            _exchange(engine, parameter, value)


@torch.no_grad()
def _exchange(engine: DeepSpeedEngine, parameter: nn.Parameter, value: torch.Tensor) -> torch.Tensor:
    """Gives a parameter a value; returns what it had, whole."""
    if engine.zero_optimization_stage() < 3:
        before = parameter.detach().clone()
        parameter.copy_(value.view_as(parameter))
        return before
    from deepspeed.zero import GatheredParameters

    with GatheredParameters([parameter], modifier_rank=0):
        before = parameter.detach().clone()
        parameter.copy_(value.view_as(parameter))
    return before


def set_average(engine: DeepSpeedEngine, average: dict[str, torch.Tensor]) -> None:
    """Gives every rank its share of a moving average that is whole in `average`, by parameter name."""
    by_parameter = {parameter: average[name] for name, parameter in engine.module.named_parameters() if name in average}
    state = engine.basic_optimizer.state
    if engine.zero_optimization_stage() == 0:
        masters = _unpartitioned_masters(engine)
        for parameter, whole in by_parameter.items():
            master = masters.get(parameter, parameter)
            state[master]["ema"] = whole.to(master.device, master.dtype, copy=True).view_as(master)
        return
    for master, pieces in _partitions(engine, {p: whole.flatten() for p, whole in by_parameter.items()}):
        state[master]["ema"] = master.detach().clone()
        for start, piece in pieces:
            state[master]["ema"].narrow(0, start, piece.numel()).copy_(piece)


def _partitions(
    engine: DeepSpeedEngine, whole: dict[nn.Parameter, torch.Tensor]
) -> Iterator[tuple[torch.Tensor, list[tuple[int, torch.Tensor]]]]:
    """This rank's flat fp32 masters, each with `(offset, values)` of the parameters' parts that lie in it."""
    zero = engine.optimizer
    if engine.zero_optimization_stage() < 3:
        pieces_of: dict[torch.Tensor, list] = {}
        for parameter, values in whole.items():
            if (part := _of_zero(parameter)._hp_mapping) is not None:
                piece = part.hp_fragment_address.start, _fragment(part.lp_fragment_address, values)
                pieces_of.setdefault(_flat_master(engine, part), []).append(piece)
        yield from pieces_of.items()
        return
    for master, parameters in zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True):
        pieces, start = [], 0
        for parameter in parameters:
            size = parameter.partition_numel()
            pieces.append((start, whole[parameter][dist.get_rank() * size :][:size]))
            start += size
        yield master, pieces


def _fragment(address: Any, values: torch.Tensor) -> torch.Tensor:
    return values.narrow(0, address.start, address.numel)
