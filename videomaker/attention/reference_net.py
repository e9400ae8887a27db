"""A ReferenceNet's bank, read without repeating it for every frame (AnimateAnyone, arXiv 2311.17117, and its kin).

A second UNet sees the reference once; what goes into each of its spatial self-attentions is the bank. In the denoising
UNet every frame attends over [its own tokens ‖ the bank of the same layer].
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from diffusers.models.attention_processor import Attention

from videomaker.errors import InputError, check_counts
from videomaker.kernels import reference_attention

from .unet import (
    BANK,
    check_backend,
    check_score_shift,
    heads_of,
    install_processors,
    project_out,
    refuse_inputs,
    spatial_self_attentions,
)

States = torch.Tensor | tuple[torch.Tensor, torch.Tensor]  # hidden states [B, M, C], or their keys and values


class BankWriter(NamedTuple):
    """A call that fills `states`; `num_references` rows in turn belong to one video."""

    states: dict[str, States]
    num_references: int


class BankReader(NamedTuple):
    """A call that attends over `states`; see `ReferenceBank.read`."""

    states: dict[str, States]
    num_frames: int
    use_reference: torch.Tensor | None
    bias: float | torch.Tensor | None


class ReferenceBank:
    """What a ReferenceNet leaves for the denoising UNet: hidden states `[B, M, C]` for each layer, by its name.

    It belongs to one batch of videos and travels with each call, as `cross_attention_kwargs`: neither UNet keeps
    anything between two calls.
    """

    def __init__(self, states: dict[str, States] | None = None):
        self.states: dict[str, States] = {} if states is None else states

    def write(self, *, num_references: int = 1) -> dict[str, Any]:
        """`cross_attention_kwargs` of the ReferenceNet's call of `B·num_references` rows; empties the bank."""
        check_counts(num_references=num_references)
        self.states = {}
        return {BANK: BankWriter(self.states, num_references)}

    def read(
        self,
        *,
        num_frames: int,
        use_reference: torch.Tensor | None = None,
        bias: float | torch.Tensor | None = None,
    ) -> dict[str, Any]:
        """`cross_attention_kwargs` of the denoising UNet's call, whose rows are `[B·num_frames]`.

        Args:
            num_frames: F, the rows of one video.
            use_reference: bool `[B]`, on the UNet's device: where False the video attends to itself alone (guidance's
                unconditional half). B may be a multiple of the bank's: [all videos without text, all videos with it].
            bias: added to the scores of the reference; see `videomaker.kernels.reference_attention`.

        Raises:
            InputError: the bank is empty, `num_frames` is no count, or `bias` a number that cannot be added.
        """
        check_counts(num_frames=num_frames)
        check_score_shift("bias", bias)
        if not self.states:
            raise InputError("the bank is empty: call the ReferenceNet with cross_attention_kwargs=bank.write() first")
        return {BANK: BankReader(self.states, num_frames, use_reference, bias)}

    def project(self, unet: torch.nn.Module) -> ReferenceBank:
        """A bank of keys and values `[B, M, H, D]` by the projections of `unet`, to make them once for all steps.

        It is to be made again when a weight of `unet` has changed, a loaded or switched LoRA included.
        """
        layers = {name: layer for name, layer in spatial_self_attentions(unet) if name in self.states}
        return ReferenceBank({name: _keys_and_values(layer, self.states[name]) for name, layer in layers.items()})


class ReferenceAttnProcessor:
    """Self-attention over [own ‖ bank], the bank stored and projected once for all frames of a video.

    Without a keyword of a `ReferenceBank` every row attends to itself alone; when the bank is written, too.
    """

    def __init__(self, name: str, backend: str = "auto", *, reads: bool = True):
        self.name = name
        self.backend = backend
        self.reads = reads

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        reference_bank: BankWriter | BankReader | None = None,
    ) -> torch.Tensor:
        """Maps hidden states `[B·F, N, C]` (`[B·R, N, C]` when the bank is written) to the same shape."""
        refuse_inputs(encoder_hidden_states, attention_mask)
        if isinstance(reference_bank, BankWriter):
            references = _references(hidden_states, reference_bank.num_references)
            reference_bank.states[self.name] = references.flatten(1, 2)
        query, key, value = heads_of(attn, hidden_states)
        if isinstance(reference_bank, BankReader) and self.reads:
            attended = self._read(attn, query, key, value, reference_bank)
        else:
            attended = reference_attention(
                query, key, value, key[:1, :0], value[:1, :0], num_frames=1, scale=attn.scale, backend=self.backend
            )
        return project_out(attn, attended, len(hidden_states))

    def _read(
        self, attn: Attention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bank: BankReader
    ) -> torch.Tensor:
        """Attends `[B·F, N, H, D]` over [own ‖ bank]; returns `[B, F·N, H, D]`."""
        if self.name not in bank.states:
            raise InputError(
                f"the bank has nothing for {self.name}: write it with a UNet of the same layers, or read with "
                "blocks='midup'"
            )
        rows, tokens, *_ = query.shape
        if bank.num_frames < 1 or rows % bank.num_frames:
            raise InputError(f"num_frames must divide the {rows} rows of the UNet's batch, got {bank.num_frames}")
        own = [x.reshape(rows // bank.num_frames, bank.num_frames * tokens, *x.shape[2:]) for x in (query, key, value)]
        return reference_attention(
            *own,
            *(_for_batch(x, len(own[0])) for x in _keys_and_values(attn, bank.states[self.name])),
            num_frames=bank.num_frames,
            use_reference=bank.use_reference,
            reference_bias=bank.bias,
            scale=attn.scale,
            backend=self.backend,
        )


def install_reference_attention(
    unet: torch.nn.Module, *, backend: str = "auto", blocks: Literal["full", "midup"] = "full"
) -> list[str]:
    """Puts `ReferenceAttnProcessor`s on the spatial self-attentions: of the ReferenceNet and of the denoising UNet.

    Args:
        unet: a UNet2DConditionModel or UNetMotionModel; the two UNets pair their layers by name.
        backend: of `videomaker.kernels.reference_attention`.
        blocks: which layers read the bank: all, or those of the middle and the up blocks (`fusion_blocks` elsewhere).

    Returns:
        The names of the `attn1` layers that read.

    Raises:
        InputError: `unet` has no such layers, or ones with parts that these processors do not compute; no such backend.
    """
    check_backend(backend)
    if blocks not in ("full", "midup"):
        raise InputError(f"blocks must be 'full' or 'midup', got {blocks!r}")

    def reads(name: str) -> bool:
        return blocks == "full" or not name.startswith("down_blocks.")

    installed = install_processors(unet, lambda name: ReferenceAttnProcessor(name, backend, reads=reads(name)))
    return [name for name in installed if reads(name)]


def _keys_and_values(attn: Attention, states: States) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values `[B, M, H, D]` of a bank's entry."""
    if isinstance(states, tuple):
        return states
    key, value = (layer(states).unflatten(-1, (attn.heads, -1)) for layer in (attn.to_k, attn.to_v))
    return key, value


def _references(hidden_states: torch.Tensor, num_references: int) -> torch.Tensor:
    """Rows `[B·R, N, C]` to `[B, R, N, C]`."""
    if len(hidden_states) % num_references:
        raise InputError(f"num_references must divide the {len(hidden_states)} rows, got {num_references}")
    return hidden_states.unflatten(0, (-1, num_references))


def _for_batch(x: torch.Tensor, batch: int) -> torch.Tensor:
    """A bank's keys or values for `batch` videos: guidance has each video again, once more for each of its parts."""
    if len(x) in (1, batch):
        return x
    if batch % len(x):
        raise InputError(f"the bank is of {len(x)} videos and the UNet's batch of {batch}: one must divide the other")
    return x.repeat(batch // len(x), 1, 1, 1)
