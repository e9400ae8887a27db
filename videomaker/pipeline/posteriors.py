"""The VAE's posteriors of pictures seen before: a reference that comes again is not encoded again."""

from __future__ import annotations

from collections import OrderedDict

import torch
from diffusers import AutoencoderKL

from videomaker.digests import sha256

CAPACITY = 32  # pictures; a posterior at 512×512 takes 64 KiB in half precision


class PosteriorCache:
    """Mean and standard deviation of `q(z | picture)`, by the picture's content.

    The sample that is drawn from them is not kept: it belongs to a seed. Another VAE, other weights in the same one,
    another dtype or device start anew.
    """

    def __init__(self):
        self._vae: AutoencoderKL | None = None
        self._version = 0
        self._kept: OrderedDict[tuple, tuple[torch.Tensor, torch.Tensor]] = OrderedDict()

    def __call__(
        self, vae: AutoencoderKL, pixels: torch.Tensor, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation, `[P, C, h, w]` each, of pictures `[P, 3, H, W]` in [-1, 1]."""
        version = _version(vae)
        if vae is not self._vae or version != self._version:
            self._vae, self._version = vae, version
            self._kept.clear()
        keys = [(_digest(picture), picture.shape, vae.dtype, str(device)) for picture in pixels]
        missing = {key: index for index, key in enumerate(keys) if key not in self._kept}
        if missing:
            pictures = pixels[list(missing.values())].to(device, vae.dtype)
            posterior = vae.encode(pictures).latent_dist
            self._kept.update(zip(missing, zip(posterior.mean, posterior.std, strict=True), strict=True))
        found = []
        for key in keys:
            self._kept.move_to_end(key)
            found.append(self._kept[key])
        while len(self._kept) > CAPACITY:
            self._kept.popitem(last=False)
        mean, std = zip(*found, strict=True)
        return torch.stack(mean), torch.stack(std)


def _version(vae: AutoencoderKL) -> int:
    """Grows when a weight is written to in place, as `load_state_dict` does."""
    return sum(parameter._version for parameter in vae.parameters() if not parameter.is_inference())


def _digest(picture: torch.Tensor) -> str:
    return sha256(picture.detach().float().cpu().contiguous().numpy())
