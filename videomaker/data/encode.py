"""Frames to latents and captions to tokens, with noise that belongs to a clip and not to a moment.

Letters: B clips, C latent channels, F frames, H×W pixels, h×w latent size, L text tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextModel, CLIPTokenizer

from videomaker.digests import sha256_number
from videomaker.environment import dtype_option
from videomaker.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class HasTokenizer(Protocol):
    """A pipeline, or `Encoders`."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Turns captions into tokens."""


@dataclass(frozen=True)
class Encoders:
    """The frozen models whose outputs are cached; a pipeline has these too."""

    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: PreTrainedTokenizerBase


def load_encoders(model: Path, *, vae: Path | None = None) -> Encoders:
    """Loads them in fp32 onto the GPU, if there is one, from a diffusers folder; `vae` replaces the folder's own.

    Raises:
        InputError: the folder has no such parts.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for folder in (vae or model / "vae", model / "text_encoder", model / "tokenizer"):
        if not folder.is_dir():
            raise InputError(f"{folder} does not exist; --model wants a pipeline's folder in the diffusers format")
    return Encoders(
        AutoencoderKL.from_pretrained(vae or model / "vae", **dtype_option(torch.float32)).to(device),
        CLIPTextModel.from_pretrained(model / "text_encoder", dtype=torch.float32).to(device),
        CLIPTokenizer.from_pretrained(model / "tokenizer"),
    )


def generator(device: torch.device, *key: int | str) -> torch.Generator:
    """A generator whose stream is fixed by `key`, whatever ran before: a resumed run draws what it would have drawn."""
    return torch.Generator(device).manual_seed(sha256_number("/".join(map(str, key))) >> 1)


@torch.no_grad()
def encode_latents(
    vae: AutoencoderKL, pixels: torch.Tensor, keys: Sequence[tuple[int, ...]], purpose: str
) -> torch.Tensor:
    """Samples the scaled latents `[B, C, F, h, w]` of `pixels` `[B, 3, F, H, W]` in [-1, 1], in fp32.

    A clip's noise depends only on its key and on `purpose`.
    """
    posterior = vae.encode(pixels.transpose(1, 2).flatten(0, 1).to(vae.dtype)).latent_dist
    shape = (pixels.shape[2], *posterior.mean.shape[1:])
    sources = [generator(pixels.device, purpose, *key) for key in keys]
    noise = torch.cat([torch.randn(shape, generator=source, device=pixels.device) for source in sources])
    latents = posterior.mean.float() + posterior.std.float() * noise
    return (latents * vae.config.scaling_factor).unflatten(0, (len(keys), -1)).transpose(1, 2)


def tokenize(owner: HasTokenizer, captions: Sequence[str], device: torch.device) -> torch.Tensor:
    """Token ids `[B, L]`, padded and truncated to the text encoder's length."""
    tokenizer = owner.tokenizer
    tokens = tokenizer(
        list(captions),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    return tokens.input_ids.to(device)
