"""What `--dry-run --memory` prints: the footprint of the run and of its alternatives, and the card that each fits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace

import torch

from .config import TrainConfig
from .memory import Footprint, count
from .recompute import checkpointing_mode

CARDS = (8, 12, 16, 24, 32, 40, 48, 80, 96, 141)  # GB, as sold
HEADROOM = 1.08  # fragments
RUNTIME = 10**9  # CUDA's context and libraries
_GB = 10**9


def smallest_card(footprint: Footprint) -> int | None:
    """The smallest of `CARDS` that holds a footprint with some room to spare; None when none does."""
    needed = footprint.device_bytes * HEADROOM + RUNTIME
    return next((card for card in CARDS if needed <= card * _GB), None)


def card_bytes(device: torch.device) -> int | None:
    """The memory of a GPU; None of anything else."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def choose_checkpointing(config: TrainConfig, card: int | None) -> tuple[TrainConfig, str]:
    """`config` with "auto" decided, and why: "blocks", or "all" on a card that is too small for it.

    Args:
        config: of the run.
        card: the GPU's memory; None where there is none, and the CPU's takes what comes.
    """
    if checkpointing_mode(config.model.gradient_checkpointing) != "auto" or config.task == "autoencoder":
        return config, ""
    blocks = replace(config, model=replace(config.model, gradient_checkpointing="blocks"))
    if card is None:
        return blocks, ""
    needed = count(blocks).device_bytes * HEADROOM + RUNTIME
    if needed <= card:
        return blocks, ""
    return replace(config, model=replace(config.model, gradient_checkpointing="all")), (
        f"model.gradient_checkpointing=auto: this card has {card / _GB:.0f} GB and recomputing the blocks alone "
        f"would need about {needed / _GB:.0f}, so the motion modules are recomputed too (all)"
    )


def alternatives(config: TrainConfig) -> dict[str, TrainConfig]:
    """The run as configured and with other ways to checkpoint and to offload, by the overrides that make them."""
    found = {"as configured": config}
    for mode in ("none", "blocks", "all"):
        name = f"model.gradient_checkpointing={mode}"
        found[name] = replace(config, model=replace(config.model, gradient_checkpointing=mode))
    smallest = found["model.gradient_checkpointing=all"]
    hosted = replace(smallest, model=replace(smallest.model, offload_activations=True))
    found["model.gradient_checkpointing=all model.offload_activations=true"] = hosted
    stage = max(config.zero.stage, 1)
    offloaded = replace(smallest, zero=replace(config.zero, stage=stage, offload="cpu"))
    found[f"model.gradient_checkpointing=all zero.stage={stage} zero.offload=cpu"] = offloaded
    return found


def report(config: TrainConfig, world_size: int = 1) -> Iterator[str]:
    """Lines for people as they are counted, and last one line of JSON about the run as configured.

    Raises:
        InputError: the model's folder or a setting does not fit.
    """
    yield f"memory of one of {world_size} devices, {_describe(config)}, in GB (10^9 bytes), counted, not measured"
    first: Footprint | None = None
    for name, variant in alternatives(config).items():
        footprint = count(variant, world_size)
        first = first or footprint
        card = smallest_card(footprint)
        fits = f"fits a card of {card} GB" if card else "fits no card"
        yield (
            f"  step {footprint.activation_peak_bytes / _GB:6.2f} + states {footprint.state_bytes / _GB:6.2f} = "
            f"{footprint.device_bytes / _GB:6.2f}  {fits:24} {name}"
        )
    assert first is not None
    yield f"a checkpoint takes {first.checkpoint_bytes / _GB:.2f} GB, {config.checkpoint.keep_last} are kept"
    mode = checkpointing_mode(config.model.gradient_checkpointing)
    about = {
        "gradient_checkpointing": "blocks" if mode == "auto" else mode,
        "card_gb": smallest_card(first),
        **asdict(first),
    }
    yield json.dumps(about)


def _describe(config: TrainConfig) -> str:
    data = config.data
    what = f"LoRA of rank {config.method.lora.rank}" if config.method.lora.rank else "the method's own parameters"
    return (
        f"{data.num_frames} frames of {data.width}×{data.height}, {config.micro_batch_size} clips a pass, "
        f"{config.precision}, {config.optimizer.name}, ZeRO {config.zero.stage}, training {what}"
    )
