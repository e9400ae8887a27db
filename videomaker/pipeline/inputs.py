"""What the pipeline is called with, sorted out: pictures for every prompt, one of everything for every video."""

from __future__ import annotations

import torch
from diffusers.image_processor import PipelineImageInput

from videomaker.errors import InputError

Images = PipelineImageInput
Generators = torch.Generator | list[torch.Generator]


def references_per_prompt(images: Images | list[Images], batched: bool, num_prompts: int) -> list[list]:
    """The pictures of each prompt's subject: a list of `num_prompts` lists of equal length."""
    images = images if isinstance(images, (list, tuple)) else [images]
    if not images:
        raise InputError("the list of reference images is empty; give at least one")
    per_prompt = _per_prompt(list(images), batched, num_prompts)
    counts = [len(references) for references in per_prompt]
    if min(counts) != max(counts) or not counts[0]:
        raise InputError(f"prompts have {counts} reference images; give every prompt of a batch the same number")
    return per_prompt


def _per_prompt(images: list, batched: bool, num_prompts: int) -> list[list]:
    if not batched:  # one prompt: all pictures show its subject
        return [list(images[0]) if isinstance(images[0], (list, tuple)) else images] * num_prompts
    if len(images) == 1:
        images = images * num_prompts
    if len(images) != num_prompts:
        raise InputError(
            f"{len(images)} reference images for {num_prompts} prompts; give one for all, or one (or a list) for each"
        )
    return [list(image) if isinstance(image, (list, tuple)) else [image] for image in images]


def one_for_each(text: str | list[str], count: int) -> list[str]:
    """A text for each of `count` prompts, from one or from as many."""
    texts = text if isinstance(text, list) else [text] * count
    if len(texts) != count:
        raise InputError(f"{len(texts)} negative prompts for {count} prompts; give one, or one for each")
    return texts


def check_generators(generator: Generators | None, num_videos: int) -> None:
    """Refuses a list of generators that is not one for each video."""
    if isinstance(generator, list) and len(generator) != num_videos:
        raise InputError(f"{len(generator)} generators for {num_videos} videos; give one, or one for each video")
