"""The subject's pictures made into latents."""

from __future__ import annotations

import os
from itertools import chain
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from videomaker.errors import InputError
from videomaker.pictures import load_reference, python_picture


def references_per_prompt(images: Any, batched: bool, num_prompts: int) -> list[list]:
    """The pictures of each prompt's subject: a list of `num_prompts` lists of equal length.

    A batch, `[P, 3, H, W]` as a tensor or `[P, H, W, 3]` as an array, is the list of its pictures.
    """
    images = _unbatched(images)
    images = images if isinstance(images, list) else [images]
    if not images:
        raise InputError("the list of reference images is empty; give at least one")
    per_prompt = _per_prompt(images, batched, num_prompts)
    counts = [len(references) for references in per_prompt]
    if min(counts) != max(counts) or not counts[0]:
        raise InputError(f"prompts have {counts} reference images; give every prompt of a batch the same number")
    return per_prompt


def _unbatched(images: Any) -> Any:
    if isinstance(images, (list, tuple)):
        return [_unbatched(image) for image in images]
    if isinstance(images, (torch.Tensor, np.ndarray)) and images.ndim == 4:
        return [_unbatched(image) for image in images]
    return images


def _per_prompt(images: list, batched: bool, num_prompts: int) -> list[list]:
    if not batched:  # one prompt: all pictures show its subject
        return [list(chain.from_iterable(x if isinstance(x, list) else [x] for x in images))] * num_prompts
    if len(images) == 1:
        images = images * num_prompts
    if len(images) != num_prompts:
        raise InputError(
            f"{len(images)} reference images for {num_prompts} prompts; give one for all, or one (or a list) for each"
        )
    return [image if isinstance(image, list) else [image] for image in images]


def preprocess(processor: VaeImageProcessor, images: list, height: int, width: int) -> torch.Tensor:
    """Pictures from files and from Python as `[P, 3, height, width]` in [-1, 1]; every kind means the same."""
    pictures = [_picture(image, f"reference_image {index}") for index, image in enumerate(images)]
    return torch.cat([processor.preprocess(picture, height, width) for picture in pictures])


def _picture(image: Any, name: str) -> Image.Image | torch.Tensor:
    if isinstance(image, (str, os.PathLike, bytes)):
        return load_reference(image)
    return python_picture(image, name)
