"""Memory of the models: what is free, what a pass needs, how many frames the VAE can decode at once."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# At its peak the decoder holds this many tensors of its second widest level at full resolution; counted by PeakMemory.
DECODER_TENSORS = 4
DECODER_SHARE = 0.8  # of the free memory; the rest is for fragments and for what libraries allocate
MOST_FRAMES = 16  # at once: more of them do not keep a device busier


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of the tensors that are made, and stay alive, within the block; on any device, "meta" included.

    Workspaces inside operators are not seen, so an operator counts for its outputs alone.

    Attributes:
        live: bytes alive now.
        peak: the most bytes that were alive at once.
    """

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._watch(tensor.untyped_storage())
        return result

    def _watch(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self.live -= size


def module_bytes(module: torch.nn.Module) -> int:
    """Bytes of the parameters and buffers."""
    return sum(x.numel() * x.element_size() for x in (*module.parameters(), *module.buffers()))


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can still be allocated on an NVIDIA or AMD GPU; None where that cannot be told."""
    if device.type != "cuda":
        return None
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached


def frames_at_once(vae: AutoencoderKL, latents: torch.Tensor) -> int:
    """How many frames of `latents` `[B·F, C, h, w]` the VAE decodes at once in the memory that is free, at least 1."""
    free = free_bytes(latents.device)
    if free is None:
        return MOST_FRAMES
    return max(1, min(MOST_FRAMES, int(DECODER_SHARE * free / decoder_bytes_per_frame(vae, *latents.shape[-2:]))))


def decoder_bytes_per_frame(vae: AutoencoderKL, height: int, width: int) -> int:
    """Bytes that decoding one frame of `height × width` latents needs at its peak."""
    widths = vae.config.block_out_channels
    factor = 2 ** (len(widths) - 1)
    pixels = height * factor * width * factor
    return DECODER_TENSORS * widths[min(1, len(widths) - 1)] * pixels * vae.dtype.itemsize
