"""PISA in a UNetMotionModel: attention processors that let every frame attend over [frame ‖ reference].

Only the spatial self-attention (`attn1` outside the motion modules) changes; there are no new parameters
(arXiv 2412.19645, section 4.2).
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch
import torch.nn.functional as functional
from diffusers import UNetMotionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

from videomaker.kernels import pisa_attention

from .unet import LAYOUT, add_hook, check_backend, check_unet, is_spatial_self_attention, keep_from_others


class ReferenceLayout(NamedTuple):
    """How the UNet's rows are laid out: per video `num_frames` frames, then `num_references` references.

    It travels with the call, as `cross_attention_kwargs=layout.as_kwargs()`. Without one every row stands alone, which
    is the plain self-attention of AnimateDiff: a UNet keeps nothing of the layout between two calls.
    """

    num_frames: int = 1
    num_references: int = 0

    @property
    def rows_per_video(self) -> int:
        """Rows of the UNet's batch that belong to one video, references included."""
        return self.num_frames + self.num_references

    def as_kwargs(self, others: dict[str, Any] | None = None) -> dict[str, Any]:
        """`cross_attention_kwargs` that carry this layout, beside `others`."""
        return {**(others or {}), LAYOUT: self}


EACH_ROW_ALONE = ReferenceLayout()


class PisaAttnProcessor:
    """Self-attention of the frames over [frame ‖ reference], and of the reference averaged over the frames.

    Between the projections nothing is permuted, copied, concatenated or sliced: `pisa_attention` reads and writes
    the hidden states as they lie in memory. The average is taken before `to_out`, which commutes with it.
    """

    def __init__(self, backend: str = "auto", fuse: bool = False):
        self.backend = backend
        self.fuse = fuse

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        reference_layout: ReferenceLayout = EACH_ROW_ALONE,
    ) -> torch.Tensor:
        """Maps hidden states `[B·(F+R), N, C]` to the same shape."""
        if encoder_hidden_states is not None or attention_mask is not None:
            raise ValueError("PISA is a self-attention without a mask; got encoder_hidden_states or attention_mask")
        rows, num_tokens, _ = hidden_states.shape
        query, key, value = self.project(attn, hidden_states, rows // reference_layout.rows_per_video)
        attended = pisa_attention(  # [B, (F+R)·N, H, D]
            query,
            key,
            value,
            num_frames=reference_layout.num_frames,
            num_ref_tokens=reference_layout.num_references * num_tokens,
            scale=attn.scale,
            backend=self.backend,
        )
        attended = attended.view(rows, num_tokens, -1)
        return attn.to_out[1](attn.to_out[0](attended))

    def project(self, attn: Attention, hidden_states: torch.Tensor, batch_size: int) -> tuple[torch.Tensor, ...]:
        """Query, key and value, each `[B, (F+R)·N, H, D]`; views of one product when the projections are fused."""
        hidden_states = hidden_states.reshape(batch_size, -1, hidden_states.shape[-1])
        if self.fuse:
            return fused_projections(attn, hidden_states)
        projections = (attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states))
        return tuple(x.view(batch_size, -1, attn.heads, x.shape[-1] // attn.heads) for x in projections)


def fused_projections(attn: Attention, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Query, key and value `[…, H, D]` of a self-attention without biases, as views of one matrix product.

    The weights are joined anew at every call, which costs a thousandth of the product: a joined copy would have to be
    kept up to date with loaded weights, left out of checkpoints, and moved with the module.
    """
    layers = (attn.to_q, attn.to_k, attn.to_v)
    weights = [_whole_weight(layer) for layer in layers]
    whole = [weight for weight in weights if weight is not None]
    if len(whole) < len(weights):
        return tuple(layer(hidden_states).unflatten(-1, (attn.heads, -1)) for layer in layers)
    joined = functional.linear(hidden_states, torch.cat(whole))
    return joined.unflatten(-1, (3, attn.heads, -1)).unbind(-3)


def _whole_weight(layer: Any) -> torch.Tensor | None:
    """The matrix that a layer without a bias applies, plain LoRA adapters added; None when it does more than that.

    Low-rank factors are multiplied out at every call: next to the product with all tokens that costs little.
    """
    if type(layer) is torch.nn.Linear:
        return layer.weight if layer.bias is None else None
    if not hasattr(layer, "lora_A"):  # another kind of adapter, such as LoHa, or of layer
        return None
    if type(layer.base_layer) is not torch.nn.Linear or layer.base_layer.bias is not None:
        return None
    adapters = [name for name in layer.active_adapters if name in layer.lora_A]
    if getattr(layer, "lora_variant", None) or not all(_is_plain(layer, name) for name in adapters):
        return None
    weight = layer.base_layer.weight
    if layer.disable_adapters and layer.merged:
        return None  # the next call takes them out again
    if layer.disable_adapters or layer.merged:
        return weight
    for name in adapters:
        down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
        weight = weight + (layer.scaling[name] * (up @ down)).to(weight.dtype)
    return weight


class FramesOnlyCrossAttnProcessor(AttnProcessor2_0):
    """Text cross-attention for the frames alone; the reference passes its normalised input (paper, Table 3)."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        *args,
        reference_layout: ReferenceLayout = EACH_ROW_ALONE,
        **kwargs,
    ) -> torch.Tensor:
        """Maps hidden states `[B·(F+R), N, C]` to the same shape; the text `[B·(F+R), L, E]` is repeated per row."""
        if encoder_hidden_states is None or reference_layout.num_references == 0:
            return super().__call__(attn, hidden_states, encoder_hidden_states, *args, **kwargs)
        frames, reference = _split_rows(hidden_states, reference_layout)
        text, _ = _split_rows(encoder_hidden_states, reference_layout)
        attended = super().__call__(attn, frames.flatten(0, 1), text.flatten(0, 1), **kwargs)
        return torch.cat([attended.view_as(frames), reference], dim=1).flatten(0, 1)


def leaves_reference_out(processor: Any) -> bool:
    """Whether a text cross-attention is for the frames alone, also through what the static step put around it."""
    return isinstance(getattr(processor, "replaced", processor), FramesOnlyCrossAttnProcessor)


def _is_plain(layer: Any, adapter: str) -> bool:
    return isinstance(layer.lora_dropout[adapter], torch.nn.Identity) and layer.lora_B[adapter].bias is None


def _split_rows(x: torch.Tensor, layout: ReferenceLayout) -> tuple[torch.Tensor, torch.Tensor]:
    """Splits rows `[B·(F+R), …]` into the frames' `[B, F, …]` and the references' `[B, R, …]`."""
    x = x.unflatten(0, (-1, layout.rows_per_video))
    return x[:, : layout.num_frames], x[:, layout.num_frames :]


def trainable_names(unet: UNetMotionModel, update_motion: bool = True) -> list[str]:
    """Names of the parameters that the method trains: spatial `attn1` and, if asked, the motion modules."""
    return [
        name
        for name, _ in unet.named_parameters()
        if is_spatial_self_attention(name) or (update_motion and "motion_modules" in name.split("."))
    ]


def install_pisa(unet: UNetMotionModel, *, backend: str = "auto", reference_cross_attention: bool = True) -> list[str]:
    """Puts PISA processors on the spatial `attn1` layers of `unet`, and only there. Safe to call again.

    Args:
        unet: the model. It keeps nothing but its processors: the layout of a call comes with the call.
        backend: of `videomaker.kernels.pisa_attention`.
        reference_cross_attention: whether the reference takes part in text cross-attention (a row of Table 3).

    Returns:
        The names of the changed `attn1` layers.

    Raises:
        InputError: there is no such backend, or `unet` is no model.
    """
    check_backend(backend)
    check_unet(unet)
    installed = []
    for name, module in unet.named_modules():
        if not isinstance(module, Attention) or "motion_modules" in name.split("."):
            continue
        if is_spatial_self_attention(name):
            module.set_processor(PisaAttnProcessor(backend))
            installed.append(name)
            continue
        add_hook(module, keep_from_others)
        if not reference_cross_attention:
            module.set_processor(FramesOnlyCrossAttnProcessor())
        elif leaves_reference_out(module.processor):
            module.set_processor(AttnProcessor2_0())
    unet.__dict__["set_default_attn_processor"] = _DefaultProcessors(unet)
    return installed


def drop_layout(unet: UNetMotionModel) -> None:
    """For a UNet without PISA: the layout of a call ends where no processor reads it, without diffusers' warning."""
    for name, module in unet.named_modules():
        if isinstance(module, Attention) and "motion_modules" not in name.split("."):
            add_hook(module, keep_from_others)


class _DefaultProcessors:
    """`unet.set_default_attn_processor()` of a UNet with PISA: diffusers' defaults everywhere, PISA's where they were.

    diffusers' own refuses processors that it does not know. Held by the UNet, whose memory is freed with its last
    user: hence a weak reference, made anew for a copy.
    """

    def __init__(self, unet: UNetMotionModel):
        self.unet = weakref.ref(unet)

    def __reduce__(self) -> tuple:
        return _DefaultProcessors, (self.unet(),)

    def __call__(self) -> None:
        unet = self.unet()
        assert unet is not None  # it is what holds this
        ours = [layer for layer in unet.modules() if isinstance(layer, Attention) and _is_ours(layer.processor)]
        kept = [layer.processor for layer in ours]
        for layer in ours:
            layer.set_processor(AttnProcessor2_0())
        try:
            type(unet).set_default_attn_processor(unet)
        finally:
            for layer, processor in zip(ours, kept, strict=True):
                layer.set_processor(processor)


def _is_ours(processor: Any) -> bool:
    return type(processor).__module__.split(".")[0] == __name__.split(".")[0]


def set_pisa_backend(unet: UNetMotionModel, backend: str) -> None:
    """Chooses the backend of `pisa_attention` for every PISA layer of `unet`."""
    check_backend(backend)
    for module in unet.modules():
        if isinstance(module, Attention) and isinstance(module.processor, PisaAttnProcessor):
            module.processor.backend = backend


def fuse_pisa_projections(unet: UNetMotionModel, fuse: bool = True) -> None:
    """Makes query, key and value of every PISA layer one matrix product (or goes back); the numbers stay the same."""
    for module in unet.modules():
        if isinstance(module, Attention) and isinstance(module.processor, PisaAttnProcessor):
            module.processor.fuse = fuse
