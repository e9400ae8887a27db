"""Low-rank adapters (arXiv 2106.09685) on what the method trains: put in by peft, named as diffusers loads them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers import UNetMotionModel
from torch import nn

from videomaker.attention import is_spatial_self_attention
from videomaker.errors import InputError

from .config import LoraSettings

ADAPTER = "default"  # peft's name; it is part of the parameters' names
_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


def target_modules(unet: UNetMotionModel, targets: tuple[str, ...]) -> list[str]:
    """The linear layers that get an adapter.

    Args:
        unet: the model, without adapters.
        targets: "attn1", the projections of the spatial self-attention; "motion", those of the motion modules.

    Raises:
        InputError: no layer belongs to one of the targets.
    """
    found: dict[str, list[str]] = {target: [] for target in targets}
    for name, module in unet.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(_PROJECTIONS):
            kind = "motion" if "motion_modules" in name.split(".") else "attn1"
            if kind in found and (kind == "motion" or is_spatial_self_attention(name)):
                found[kind].append(name)
    if empty := [target for target, names in found.items() if not names]:
        raise InputError(f"method.lora.targets has {empty[0]!r}, and the model has no such layer")
    return [name for names in found.values() for name in names]


def add_lora(unet: UNetMotionModel, settings: LoraSettings, *, seed: int) -> None:
    """Adds adapters that change nothing yet, the same for the same seed; they alone require gradients.

    Raises:
        InputError: a target is not in the model.
    """
    from peft import LoraConfig  # seconds of import, for the runs that use it

    names = target_modules(unet, settings.targets)
    alpha = settings.alpha or settings.rank
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet.add_adapter(LoraConfig(r=settings.rank, lora_alpha=alpha, target_modules=names, bias="none"), ADAPTER)
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(is_lora_name(name))
        if parameter.requires_grad:
            parameter.data = parameter.data.to(unet.device, unet.dtype)


def is_lora_name(name: str) -> bool:
    """Whether a parameter belongs to an adapter."""
    return ".lora_A." in name or ".lora_B." in name


def to_diffusers(state: Mapping[str, torch.Tensor], settings: LoraSettings) -> dict[str, torch.Tensor]:
    """A run's adapters with the names that diffusers' `load_lora_weights` reads.

    The factor alpha / rank is multiplied into B, so that every loader, whatever it makes of alpha, gets the same.
    """
    factor = (settings.alpha or settings.rank) / settings.rank
    renamed = {}
    for name, value in state.items():
        if is_lora_name(name):
            short = name.replace(f".{ADAPTER}.weight", ".weight")
            renamed[short] = value * factor if ".lora_B." in name else value
    return renamed


def changed_names(state: Mapping[str, torch.Tensor]) -> list[str]:
    """The UNet's weights that a run's adapters change."""
    end = f".lora_A.{ADAPTER}.weight"
    return [f"{name.removeprefix('unet.').removesuffix(end)}.weight" for name in state if name.endswith(end)]


@torch.no_grad()
def merge_lora(unet: nn.Module, state: Mapping[str, torch.Tensor], settings: LoraSettings) -> None:
    """Adds a run's adapters to the weights of a `unet` without adapters.

    Args:
        unet: in fp32, so that the sum is rounded once.
        state: the run's trained tensors, `unet.….lora_A.default.weight` `[r, in]` and `lora_B` `[out, r]`.
        settings: of the run.
    """
    factors = to_diffusers(state, settings)
    for name in changed_names(state):
        layer = f"unet.{name.removesuffix('.weight')}"
        down, up = factors[f"{layer}.lora_A.weight"], factors[f"{layer}.lora_B.weight"]
        weight = unet.get_parameter(name)
        weight.add_((up.double() @ down.double()).to(weight.dtype))
