"""The VAE's posteriors of pictures seen before: a reference that comes again is not encoded again."""

from __future__ import annotations

from collections import OrderedDict

import torch
from diffusers import AutoencoderKL

from videomaker.digests import sha256

CAPACITY = 32  # pictures; a posterior at 512×512 takes 64 KiB in half precision

Version = tuple[bytes, torch.dtype] | None


class PosteriorCache:
    """Mean and standard deviation of `q(z | picture)`, by the picture's content.

    The sample that is drawn from them is not kept: it belongs to a seed. Another VAE, other weights in the same one,
    another dtype or device start anew.
    """

    def __init__(self):
        self._vae: AutoencoderKL | None = None
        self._version: Version = None
        self._kept: OrderedDict[tuple, tuple[torch.Tensor, torch.Tensor]] = OrderedDict()

    def __call__(
        self, vae: AutoencoderKL, pixels: torch.Tensor, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation, `[P, C, h, w]` each, of pictures `[P, 3, H, W]` in [-1, 1]."""
        version = _version(vae)
        if vae is not self._vae or version is None or version != self._version:
            self._vae, self._version = vae, version
            self._kept.clear()
        kept = self._kept
        keys = [(_digest(picture), picture.shape, vae.dtype, str(device)) for picture in pixels]
        found = {key: kept[key] for key in keys if key in kept}
        missing = {key: index for index, key in enumerate(keys) if key not in found}
        if missing:
            pictures = pixels[list(missing.values())].to(device, vae.dtype)
            posterior = vae.encode(pictures).latent_dist
            found.update(zip(missing, zip(posterior.mean, posterior.std, strict=True), strict=True))
        for key, value in found.items():
            kept[key] = value
            kept.move_to_end(key)
        while len(kept) > CAPACITY:
            kept.popitem(last=False)
        mean, std = zip(*(found[key] for key in keys), strict=True)
        return torch.stack(mean), torch.stack(std)


@torch.no_grad()
def _version(vae: AutoencoderKL) -> Version:
    """A checksum of the encoder's weights: nothing that torch counts tells of `.data`, or of tensors that were swapped.

    Two sums of every tensor, one of them weighted by place: a few milliseconds, where encoding takes a hundred times
    as long. None where the weights are elsewhere (offloaded to disk or by layers): then nothing is kept.
    """
    parts = (vae.encoder, vae.quant_conv) if vae.quant_conv is not None else (vae.encoder,)
    tensors = [value for part in parts for value in part.state_dict().values() if value.is_floating_point()]
    if any(value.is_meta for value in tensors):
        return None
    sums = []
    for value in tensors:
        flat = value.detach().reshape(-1).float()
        weights = torch.linspace(0.5, 1.5, flat.numel(), device=flat.device)
        sums += [flat.sum(), flat.square().sum(), torch.dot(flat, weights)]
    return torch.stack(
        [one.cpu() if one.device != sums[0].device else one for one in sums]
    ).cpu().numpy().tobytes(), vae.dtype


def _digest(picture: torch.Tensor) -> str:
    return sha256(picture.detach().float().cpu().contiguous().numpy().data)
