"""The reference of a training sample: the subject on white, cropped or not, augmented."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from videomaker.pictures import MAX_PIXELS, load_labels

from .ranges import AboveZero, Angle, Share

WHITE = (255, 255, 255)


def read_mask(source: Path | BinaryIO, name: str | None = None, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A mask by its labels (`videomaker.pictures.load_labels`): 255 where the subject is, 0 elsewhere, mode "L".

    Raises:
        InputError: it cannot be read.
    """
    return Image.fromarray(np.uint8(255) * (load_labels(source, name=name, max_pixels=max_pixels) != 0))


def mask_on_white(image: Image.Image, mask: Image.Image) -> Image.Image:
    """Keeps the image where the mask is above 0 and paints the rest white.

    Raises:
        ValueError: the sizes differ, or the mask keeps nothing.
    """
    if mask.size != image.size:
        raise ValueError(f"the mask has {mask.width}x{mask.height} pixels, its picture {image.width}x{image.height}")
    subject = mask.convert("L").point(lambda value: 255 * (value > 0))
    if not subject.getbbox():
        raise ValueError("the mask keeps nothing of its picture, which would be white all over")
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


def compose_reference(
    image: Image.Image,
    *,
    height: int,
    width: int,
    mask: Image.Image | None = None,
    box: tuple[float, float, float, float] | None = None,
    cut: bool = False,
) -> Image.Image:
    """What the model sees of a reference, in training and at inference: the subject on white, in the video's size.

    Args:
        image: RGB.
        height, width: of the video, in pixels.
        mask: of the image's size, 0 outside the subject, which becomes white.
        box: x1, y1, x2, y2 in pixels; the image is cropped to it and padded with white.
        cut: without a box, cut the image about its centre to the video's shape instead of padding it with white.

    Raises:
        ValueError: the mask has another size, or nothing of the box lies inside.
    """
    if mask is not None:
        image = mask_on_white(image, mask)
    if box is not None:
        return pad_to_frame(crop_to_box(image, box), height=height, width=width)
    return (fill_frame if cut else pad_to_frame)(image, height=height, width=width)


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


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random transforms. The paper names them without numbers; these are VideoBooth's."""

    flip_probability: Share = 0.5
    rotation: Angle = 30.0  # degrees, drawn from [-rotation, rotation]
    translation: Share = 0.1  # of the width and the height, drawn from [-translation, translation]
    scale_min: AboveZero = 0.8
    scale_max: AboveZero = 1.2


OBJECTS = Augmentation()
PEOPLE = Augmentation(scale_min=0.6)  # the range of VideoMaker's authors
NONE = Augmentation(flip_probability=0.0, rotation=0.0, translation=0.0, scale_min=1.0, scale_max=1.0)


def augment_reference(image: torch.Tensor, augmentation: Augmentation, rng: np.random.Generator) -> torch.Tensor:
    """Draws a flip, rotation, translation and scale from `rng` and applies them about the image's centre.

    Args:
        image: float `[C, H, W]` in [-1, 1], 1 being white.
        augmentation: ranges to draw from.
        rng: five numbers are drawn whatever the ranges, so that samples stay comparable between presets.
    """
    flip, angle, shift_x, shift_y, scale = rng.random(5)
    if flip < augmentation.flip_probability:
        image = image.flip(-1)
    angle = math.radians(augmentation.rotation * (2 * angle - 1))
    shift = [augmentation.translation * (2 * s - 1) for s in (shift_x, shift_y)]
    scale = augmentation.scale_min + scale * (augmentation.scale_max - augmentation.scale_min)
    if (angle, scale, *shift) == (0, 1, 0, 0):
        return image
    return affine_on_white(image, angle=angle, scale=scale, shift=(shift[0], shift[1]))


def affine_on_white(image: torch.Tensor, *, angle: float, scale: float, shift: tuple[float, float]) -> torch.Tensor:
    """Rotates by `angle` (radians, clockwise), scales, then shifts by fractions of the width and height.

    The bilinear sampling pads with zeros; on `1 - image` zero is white, so what comes from outside is exactly 1.

    Args:
        image: float `[C, H, W]` in [-1, 1].
    """
    height, width = image.shape[-2:]
    cos, sin, aspect = math.cos(angle) / scale, math.sin(angle) / scale, height / width
    # The inverse map, from output to input, in grid_sample's coordinates, which span 2 over either side.
    linear = torch.tensor([[cos, sin * aspect], [-sin / aspect, cos]], dtype=image.dtype)
    offset = -linear @ torch.tensor(shift, dtype=image.dtype) * 2
    grid = F.affine_grid(torch.cat([linear, offset[:, None]], 1)[None], [1, *image.shape], align_corners=False)
    return 1 - F.grid_sample(1 - image[None], grid, padding_mode="zeros", align_corners=False)[0]
