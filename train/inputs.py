"""From a batch of clips to what the learner takes: latents, text and draws; for the loop and for validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from videomaker.data.encode import encode_latents, generator, tokenize
from videomaker.pipeline import VideoMakerPipeline

from .config import TrainConfig
from .step import draw

_KEPT_EMBEDDINGS = 1024  # captions come back every epoch


class Inputs:
    """Makes the arguments of the learner's forward.

    Args:
        config: of the run.
        pipeline: the frozen VAE, text encoder and tokenizer; None for the task `autoencoder`.
        num_train_timesteps: of the noise schedule.
        device: where the learner is.
    """

    def __init__(
        self,
        config: TrainConfig,
        pipeline: VideoMakerPipeline | None,
        *,
        num_train_timesteps: int,
        device: torch.device,
    ):
        self.config, self.pipeline, self.device = config, pipeline, device
        self.num_train_timesteps = num_train_timesteps
        self._embeddings: dict[str, torch.Tensor] = {}

    def __call__(self, batch: dict[str, Any], keys: Sequence[tuple[int, ...]]) -> tuple:
        """The arguments of the learner's forward for a batch whose clips have these keys."""
        if self.config.task == "autoencoder":
            pictures = torch.cat([batch["pixel_values"], batch["reference"]], dim=2)  # it will encode references, too
            frames = pictures.to(self.device).transpose(1, 2).flatten(0, 1)
            return frames, generator(self.device, "posterior", *keys[0])
        latents = self._latents(batch, "latents", "pixel_values", keys)
        reference = (
            self._latents(batch, "reference_latents", "reference", keys) if self.config.task == "subject" else None
        )
        reference_shape = (latents.shape[1], 0, *latents.shape[3:]) if reference is None else reference.shape[1:]
        draws = draw(
            self.config.method,
            latents.shape[1:],
            reference_shape,
            keys=keys,
            num_train_timesteps=self.num_train_timesteps,
            device=self.device,
        )
        return latents, reference, self._text(batch, draws.drop_text.tolist()), draws

    @property
    def _encoders(self) -> VideoMakerPipeline:
        assert self.pipeline is not None, self.config.task  # only the autoencoder's task goes without
        return self.pipeline

    def _latents(self, batch: dict[str, Any], ready: str, pixels: str, keys: Sequence[tuple[int, ...]]) -> torch.Tensor:
        if ready in batch:
            return batch[ready].to(self.device, torch.float32)
        return encode_latents(self._encoders.vae, batch[pixels].to(self.device), keys, ready)

    def _text(self, batch: dict[str, Any], dropped: Sequence[bool]) -> torch.Tensor:
        """Embeddings of the captions, or their token ids when the text encoder is trained."""
        empty = self.config.method.dropped_text == "empty"
        captions = ["" if drop and empty else caption for caption, drop in zip(batch["caption"], dropped, strict=True)]
        if self.config.model.train_text_encoder:
            return tokenize(self._encoders, captions, self.device)
        if "prompt_embeds" not in batch:
            return torch.stack([self._embedding(caption) for caption in captions])
        embeds = batch["prompt_embeds"].to(self.device)
        return torch.stack([self._embedding("") if d and empty else e for e, d in zip(embeds, dropped, strict=True)])

    @torch.no_grad()
    def _embedding(self, caption: str) -> torch.Tensor:
        """The frozen text encoder's embedding `[L, E]`; the latest are kept."""
        if caption not in self._embeddings:
            if len(self._embeddings) >= _KEPT_EMBEDDINGS:
                self._embeddings.pop(next(iter(self._embeddings)))
            ids = tokenize(self._encoders, [caption], self.device)
            self._embeddings[caption] = self._encoders.text_encoder(ids)[0][0]
        return self._embeddings[caption]
