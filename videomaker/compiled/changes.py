"""What of a pipeline a graph has taken for granted: compared at every call, so that no change is ignored in silence."""

from __future__ import annotations

from typing import Any

import torch

from videomaker.errors import InputError

PARTS = ("unet", "vae", "text_encoder")
# What diffusers and PEFT write into modules: scales of LoRAs, FreeU, slices and tiles.
_FLAGS = (
    "scaling", "_active_adapter", "_disable_adapters", "merged_adapters", "s1", "s2", "b1", "b2", "use_slicing",
    "use_tiling", "tile_sample_min_size", "tile_latent_min_size", "tile_overlap_factor", "gradient_checkpointing",
)  # fmt: skip


class Taken:
    """The modules, processors, flags and addresses of a pipeline's parts as they were when it was compiled."""

    def __init__(self, pipe: Any):
        self._modules, self._addresses = _modules(pipe), _addresses(pipe)

    def check(self, pipe: Any) -> None:
        """Refuses a pipeline that is another one now.

        Raises:
            InputError: a part was changed, moved or cast.
        """
        if _modules(pipe) != self._modules:
            raise InputError("a LoRA, an adapter, FreeU or a part changed after compile(): call compile() again")
        if _addresses(pipe) != self._addresses:  # captured graphs read there
            raise InputError("the pipeline was moved or cast after compile(); call compile() again")


def _modules(pipe: Any) -> list[tuple]:
    found: list[tuple] = []
    for part in PARTS:
        for module in getattr(pipe, part).modules():
            own = module.__dict__
            processor = own.get("processor")
            kinds = (type(processor).__name__, type(getattr(processor, "replaced", None)).__name__)
            found.append((id(module), kinds, tuple(f"{name}={own[name]}" for name in _FLAGS if own.get(name))))
    return found


def _addresses(pipe: Any) -> list[int]:
    tensors = [value for part in PARTS for value in getattr(pipe, part).state_dict(keep_vars=True).values()]
    return [value.data_ptr() for value in tensors if isinstance(value, torch.Tensor)]
