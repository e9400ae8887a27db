"""Less memory for a step's activations: recomputing them in the backward pass, keeping them in the host's memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from diffusers import UNetMotionModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

Mode = Literal["none", "blocks", "all"]
MODES: tuple[Mode, ...] = ("none", "blocks", "all")

_SMALLEST_OFFLOADED = 2**20  # bytes; a smaller tensor costs more time on the bus than it frees memory


def checkpointing_mode(setting: Mode | Literal["auto"] | bool) -> Mode | Literal["auto"]:
    """The mode that `model.gradient_checkpointing` names: true and false are "blocks" and "none"."""
    if isinstance(setting, bool):
        return "blocks" if setting else "none"
    return setting


def enable_checkpointing(unet: UNetMotionModel, mode: Mode) -> None:
    """Makes `unet` recompute in the backward pass what `mode` says; the gradients are the same.

    Args:
        unet: the model.
        mode: "none"; "blocks": resnets and spatial transformers, as diffusers does; "all": the motion modules of the
            down and up blocks too, which diffusers keeps (those of the middle block it recomputes itself).
    """
    if mode == "none":
        return
    unet.enable_gradient_checkpointing()
    if mode == "all":
        for blocks in (unet.down_blocks, unet.up_blocks):
            for module in blocks.modules():
                if isinstance(module, AnimateDiffTransformer3D):
                    module.forward = partial(_recomputed, module.forward)


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


class KeepOnHost(saved_tensors_hooks):
    """While it lasts, tensors saved for the backward pass go to the CPU's memory, pinned when they are a GPU's.

    Weights stay where they are, as do tensors below a mebibyte. Copies are queued on the current stream, which orders
    them with what made the tensor, with what reuses its memory, and with the backward pass.
    """

    def __init__(self) -> None:
        super().__init__(_to_host, _from_host)


def _to_host(tensor: torch.Tensor) -> torch.Tensor | tuple[torch.device, torch.Tensor]:
    if stays_on_device(tensor):
        return tensor
    kept = torch.empty_strided(
        tensor.size(), tensor.stride(), dtype=tensor.dtype, device="cpu", pin_memory=tensor.is_cuda
    )
    kept.copy_(tensor, non_blocking=tensor.is_cuda)
    return tensor.device, kept


def _from_host(packed: torch.Tensor | tuple[torch.device, torch.Tensor]) -> torch.Tensor:
    if isinstance(packed, torch.Tensor):
        return packed
    device, kept = packed
    return kept.to(device, non_blocking=True) if device.type != "cpu" else kept


def stays_on_device(tensor: torch.Tensor) -> bool:
    """Whether `KeepOnHost` leaves a saved tensor alone: a weight, a view of one, or a small tensor."""
    owner = tensor if tensor._base is None else tensor._base
    return isinstance(owner, nn.Parameter) or tensor.numel() * tensor.element_size() < _SMALLEST_OFFLOADED
