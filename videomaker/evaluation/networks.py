"""The networks that measure, from local folders: frames to embeddings. Each video goes through alone, so its numbers do
not depend on what else is measured. They compute in float32, whatever their files hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from videomaker.files import sha256
from videomaker.model_files import load_whole

_WEIGHTS = (".safetensors", ".bin", ".onnx", ".pth", ".pt", ".dat")
_BATCH = 64  # pictures at once


class MissingNetwork(Exception):
    """A network is not there; the message is one line that says what to put where."""


def folder_digest(folder: Path) -> str:
    """What tells a network's files from others: its weights and its configuration of pictures."""
    files = sorted(p for p in folder.rglob("*") if p.suffix in _WEIGHTS or p.name == "preprocessor_config.json")
    return "+".join(sha256(file)[:16] for file in files)


class Clip:
    """OpenAI's CLIP in the transformers format; the paper's is ViT-B/32. Embeddings are float32 `[N, E]`."""

    HINT = "put openai/clip-vit-base-patch32 in the transformers format there"

    def __init__(self, folder: Path, device: str):
        from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

        self.digest = folder_digest(folder)
        self.processor = load_whole(CLIPImageProcessorPil, folder)
        self.tokenizer = load_whole(CLIPTokenizer, folder)
        self.model = load_whole(CLIPModel, folder, dtype=torch.float32).to(device).eval()

    @torch.inference_mode()
    def pictures(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Embeddings of pictures: bicubic to the shorter side, centre crop, as the folder's processor says."""

        def embed(pixels: torch.Tensor) -> torch.Tensor:
            pooled = self.model.vision_model(pixel_values=pixels).pooler_output
            return self.model.visual_projection(pooled)

        return _in_batches(embed, self.processor, images, self.model.device)

    @torch.inference_mode()
    def text(self, prompt: str) -> np.ndarray:
        """The embedding `[E]` of a text, cut off where CLIP stops reading."""
        limit = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(prompt, truncation=True, max_length=limit, return_tensors="pt").to(self.model.device)
        pooled = self.model.text_model(**tokens).pooler_output
        return self.model.text_projection(pooled)[0].float().cpu().numpy()


class Dino:
    """DINO's ViT in the transformers format; the paper's is ViT-S/16. Embeddings are float32 `[N, E]`."""

    HINT = "put facebook/dino-vits16 in the transformers format there"

    def __init__(self, folder: Path, device: str):
        from transformers import ViTImageProcessorPil, ViTModel

        self.digest = folder_digest(folder)
        self.processor = load_whole(ViTImageProcessorPil, folder)
        self.model = load_whole(ViTModel, folder, add_pooling_layer=False, dtype=torch.float32).to(device).eval()

    @torch.inference_mode()
    def pictures(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Class tokens of the last hidden state; pictures are stretched to a square."""
        return _in_batches(
            lambda pixels: self.model(pixel_values=pixels).last_hidden_state[:, 0],
            self.processor,
            images,
            self.model.device,
        )


def _in_batches(embed: Any, processor: Any, images: Sequence[Image.Image], device: torch.device) -> np.ndarray:
    parts = []
    for start in range(0, len(images), _BATCH):
        pixels = processor(images=list(images[start : start + _BATCH]), return_tensors="pt")["pixel_values"]
        parts.append(embed(pixels.to(device)).float().cpu().numpy())
    return np.concatenate(parts)
