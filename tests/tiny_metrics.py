"""Tiny random networks that measure, in their real formats, and small suites of pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from tiny import tiny_tokenizer
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

_SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def write_networks(folder: Path) -> Path:
    """`clip/` and `dino/` with random weights."""
    torch.manual_seed(0)
    text = {**_SMALL, "vocab_size": 514, "bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
    vision = {**_SMALL, "image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).save_pretrained(folder / "clip")
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPImageProcessorPil(**size).save_pretrained(folder / "clip")
    tiny_tokenizer().save_pretrained(folder / "clip")
    ViTModel(ViTConfig(**_SMALL, image_size=32, patch_size=8), add_pooling_layer=False).save_pretrained(folder / "dino")
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder / "dino")
    return folder


def blocks(seed: int, side: int = 32) -> np.ndarray:
    """A random picture of 8×8 blocks, `[side, side, 3]` uint8, on a white border."""
    picture = np.full((side, side, 3), 255, np.uint8)
    inner = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8).repeat(side // 8, 0).repeat(side // 8, 1)
    picture[side // 4 : side // 4 * 3, side // 4 : side // 4 * 3] = inner
    return picture


def write_suite(folder: Path, *, subjects: int = 3, prompts: int = 4, seeds: tuple[int, ...] = (1, 2)) -> Path:
    """A suite of block pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"s{number}" for number in range(subjects)]
    for number, name in enumerate(names):
        Image.fromarray(blocks(number)).save(folder / f"{name}.png")
    texts = [f"a big creature over a {place}" for place in ("green meadow", "blue sea", "grey city", "dark forest")]
    values = {
        "subjects": [{"name": name, "image": f"{name}.png"} for name in names],
        "prompts": texts[:prompts],
        "seeds": list(seeds),
    }
    (folder / "suite.yaml").write_text(yaml.safe_dump(values))
    return folder


def moving_video(seed: int, *, frames: int = 5, step: int = 3, side: int = 32) -> np.ndarray:
    """A block picture that moves to the right, `[F, side, side, 3]`."""
    return np.stack([np.roll(blocks(seed, side), index * step, axis=1) for index in range(frames)])
