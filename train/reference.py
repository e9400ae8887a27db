"""The reference of a training sample: the subject on white, cropped or not, augmented."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageOps

WHITE = (255, 255, 255)


def mask_on_white(image: Image.Image, mask: Image.Image) -> Image.Image:
    """Keeps the image where the mask is above 0 and paints the rest white.

    Raises:
        ValueError: the sizes differ.
    """
    if mask.size != image.size:
        raise ValueError(f"the mask has {mask.width}x{mask.height} pixels, its picture {image.width}x{image.height}")
    subject = mask.convert("L").point(lambda value: 255 * (value > 0))
    return Image.composite(image, Image.new("RGB", image.size, WHITE), subject)


def crop_to_box(image: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
    """Crops to x1, y1, x2, y2, cut down to whole pixels inside the image (as VideoBooth does).

    Raises:
        ValueError: nothing of the box lies inside.
    """
    left, top, right, bottom = (int(edge) for edge in box)
    left, top = max(left, 0), max(top, 0)
    right, bottom = min(right, image.width), min(bottom, image.height)
    if left >= right or top >= bottom:
        raise ValueError(f"box {list(box)} has no pixel of a picture of {image.width}x{image.height}")
    return image.crop((left, top, right, bottom))


def fill_frame(image: Image.Image, *, height: int, width: int) -> Image.Image:
    """Resizes so that the image covers the size, then crops about the centre."""
    return ImageOps.fit(image, (width, height), method=Image.Resampling.BICUBIC)


def pad_to_frame(image: Image.Image, *, height: int, width: int) -> Image.Image:
    """Resizes so that all of the image fits, then pads with white about it."""
    return ImageOps.pad(image, (width, height), method=Image.Resampling.BICUBIC, color=WHITE)


def to_tensor(image: Image.Image) -> torch.Tensor:
    """float32 `[C, H, W]` in [-1, 1]."""
    pixels = torch.from_numpy(np.array(image.convert("RGB")))
    return pixels.permute(2, 0, 1).to(torch.float32) / 127.5 - 1
