"""LoRAs of a loaded model: the weights that each changes are kept, and copied into the model's own tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from videomaker.jobs.parts import fuse_loras
from videomaker.jobs.prepare import Prepared
from videomaker.jobs.record import component_digests

from .config import Lora

Weights = dict[str, torch.Tensor]


class Adapters:
    """What a model is with each of its LoRAs.

    They are fused once, by the code of `generate --lora`, so the same request gives the same bits; putting one on or
    off is a copy of the tensors that differ, in place, so that compiled graphs see it. Kept in main memory.

    Args:
        prepared: the model, without any.
        loras: by their names.

    Raises:
        InputError: a file is no LoRA of this model.
    """

    def __init__(self, prepared: Prepared, loras: Sequence[Lora]):
        self._own = prepared
        self._variants: dict[str | None, Prepared] = {None: prepared}
        self._weights: dict[str | None, Weights] = {None: {}}
        self._on: str | None = None
        if loras:
            self._fuse(loras)

    def _fuse(self, loras: Sequence[Lora]) -> None:
        base = {name: tensor.to("cpu", copy=True) for name, tensor in self._tensors()}
        for lora in loras:
            files = (f"{lora.file}:{lora.scale!r}",)
            fuse_loras(self._own.pipe, files)
            recipe = replace(self._own.recipe, model=replace(self._own.recipe.model, loras=files))
            digests = component_digests(self._own.pipe)
            self._variants[lora.name] = replace(self._own, recipe=recipe, digests=digests)
            changed = {name: tensor for name, tensor in self._tensors() if not torch.equal(tensor.cpu(), base[name])}
            self._weights[lora.name] = {name: tensor.to("cpu", copy=True) for name, tensor in changed.items()}
            self._copy({name: base[name] for name in changed})
        touched = {name for weights in self._weights.values() for name in weights}
        self._weights[None] = {name: base[name] for name in touched}

    def put_on(self, name: str | None) -> Prepared:
        """The model with a LoRA, or with none: its weights are in the pipeline until the next call."""
        if name != self._on:
            self._copy({**self._weights[None], **self._weights[name]})
            self._on = name
        return self._variants[name]

    def _tensors(self) -> Iterable[tuple[str, torch.Tensor]]:
        for part in ("unet", "text_encoder"):
            for name, tensor in getattr(self._own.pipe, part).state_dict().items():
                yield f"{part}.{name}", tensor

    def _copy(self, weights: Weights) -> None:
        with torch.no_grad():
            for name, tensor in self._tensors():
                if name in weights:
                    tensor.copy_(weights[name])
