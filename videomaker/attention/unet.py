"""What every processor here needs of a UNet: its spatial self-attentions, and its calls' keywords brought to them.

diffusers hands the keywords of a call (`cross_attention_kwargs`) to every attention and warns of those that one lacks.
A keyword that says where the reference lies must not be lost, and must not be warned of where it means nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from inspect import signature
from numbers import Real
from typing import Any

import torch
from diffusers.models.attention_processor import Attention

from videomaker.errors import InputError
from videomaker.kernels.pisa.api import BACKENDS

LAYOUT = "reference_layout"  # of PISA
BANK = "reference_bank"  # of a ReferenceNet
STYLE = "shared_style"  # of StyleAligned
CARRIED = (LAYOUT, BANK, STYLE)


def is_spatial_self_attention(name: str) -> bool:
    """Whether a module, parameter or processor name lies in a spatial `attn1` (motion modules have one as well)."""
    parts = name.split(".")
    return "attn1" in parts and "motion_modules" not in parts


def spatial_self_attentions(unet: torch.nn.Module) -> Iterator[tuple[str, Attention]]:
    """Names and modules of the spatial self-attentions of `unet`."""
    for name, module in unet.named_modules():
        if isinstance(module, Attention) and is_spatial_self_attention(name) and not module.is_cross_attention:
            yield name, module


def check_unet(unet: Any) -> None:
    """Refuses what is no model.

    Raises:
        InputError: names it and what is wanted.
    """
    if not isinstance(unet, torch.nn.Module):
        raise InputError(f"unet is a {type(unet).__name__}: give a UNet, such as pipe.unet")


def install_processors(unet: torch.nn.Module, make: Callable[[str], Any]) -> list[str]:
    """Puts `make(name)` on every spatial self-attention, and returns their names. Safe to call again.

    From then on a carried keyword is kept from the other attentions, and refused in words by a spatial self-attention
    whose processor was replaced behind our back.
    """
    check_unet(unet)
    installed = []
    for name, layer in spatial_self_attentions(unet):
        _refuse_parts(name, layer)
        installed.append(name)
    if not installed:
        raise InputError(f"{type(unet).__name__} has no spatial self-attention (attn1): nothing to install on")
    for name, layer in unet.named_modules():
        if not isinstance(layer, Attention):
            continue
        if name in installed:
            layer.set_processor(make(name))
            add_hook(layer, refuse_replaced)
        elif "motion_modules" not in name.split("."):
            add_hook(layer, keep_from_others)
    return installed


def add_hook(layer: Attention, hook: Callable[..., Any]) -> None:
    """A pre-hook that sees the keywords; once, however often it is asked for."""
    if hook not in layer._forward_pre_hooks.values():
        layer.register_forward_pre_hook(hook, with_kwargs=True)


def keep_from_others(attn: Attention, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """A pre-hook: a carried keyword ends where the processor has no use for it."""
    lost = _lost(attn, kwargs)
    return args, {name: value for name, value in kwargs.items() if name not in lost} if lost else kwargs


def refuse_replaced(attn: Attention, args: tuple, kwargs: dict[str, Any]) -> None:
    """A pre-hook: where the keyword was meant to be read, losing it would give pictures without their reference."""
    if lost := _lost(attn, kwargs):
        raise InputError(
            f"{type(attn.processor).__name__} took the place of the processor that reads {lost[0]!r}: install it again "
            "after fuse_qkv_projections, set_attn_processor, xformers or another install"
        )


def _lost(attn: Attention, kwargs: dict[str, Any]) -> list[str]:
    carried = [name for name in CARRIED if name in kwargs]
    if not carried:
        return carried
    known = signature(attn.processor.__call__).parameters
    return [name for name in carried if name not in known]


def heads_of(attn: Attention, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Query, key and value `[…, H, D]` of hidden states `[…, C]`, as the projections wrote them."""
    return tuple(layer(hidden_states).unflatten(-1, (attn.heads, -1)) for layer in (attn.to_q, attn.to_k, attn.to_v))


def project_out(attn: Attention, attended: torch.Tensor, rows: int) -> torch.Tensor:
    """Heads of `rows` rows, `[…, H, D]`, to hidden states `[rows, N, C]`."""
    return attn.to_out[1](attn.to_out[0](attended.reshape(rows, -1, attended.shape[-2] * attended.shape[-1])))


def refuse_inputs(encoder_hidden_states: torch.Tensor | None, attention_mask: torch.Tensor | None) -> None:
    """A self-attention without a mask is all that the processors here compute."""
    if encoder_hidden_states is not None or attention_mask is not None:
        raise InputError("a self-attention without a mask: got encoder_hidden_states or attention_mask, leave them out")


def check_backend(backend: Any) -> None:
    """Refuses an attention backend that there is nowhere."""
    if backend not in ("auto", *BACKENDS):
        raise InputError(f"unknown attention backend {backend!r}: choose from auto, {', '.join(BACKENDS)}")


def check_score_shift(name: str, value: Any) -> None:
    """Refuses what cannot be added to scores; -inf leaves a reference out. A tensor is looked at when it is used."""
    if value is None or isinstance(value, torch.Tensor):
        return
    if isinstance(value, bool) or not isinstance(value, Real) or not value < math.inf:
        raise InputError(f"{name} is {value!r}; give a finite number, or -inf to leave the reference out")


def _refuse_parts(name: str, attn: Attention) -> None:
    parts = ("group_norm", "spatial_norm", "norm_q", "norm_k", "add_k_proj")
    found = [part for part in parts if getattr(attn, part, None) is not None]
    if attn.residual_connection or attn.rescale_output_factor != 1.0:
        found.append("residual_connection or rescale_output_factor")
    if found:
        raise InputError(f"{name} has {', '.join(found)}, which is not computed here: only SD's and SDXL's UNets fit")
