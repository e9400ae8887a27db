"""The trained weights and their moving average as the engine holds them: whole on one rank, cut over all of them."""

from __future__ import annotations

import torch
from torch import distributed as dist
from torch import nn


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
