"""Highlighting at inference: a picture's subject on white, made by the code that makes training's references.

The method is trained on subjects on white (arXiv 2412.19645, section 5.1). A picture with a background becomes one by a
mask, by a box, or by a word that Grounding DINO and SAM look for.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from videomaker.digests import sha256, sha256_of_file
from videomaker.errors import InputError
from videomaker.files import atomic_path
from videomaker.media import load_reference
from videomaker.pictures import MAX_PIXELS

from .highlight import Box, GroundingDino, HighlightSettings, Sam, find_subject
from .reference import compose_reference, read_mask
from .video import ClipError

logger = logging.getLogger(__name__)

Finder = Callable[[Image.Image, str], tuple[np.ndarray, Box]]  # picture, word -> mask [H, W] bool, box in pixels

DETECTOR, SEGMENTER = "grounding-dino", "sam"  # their folders below the folder of models
_PLAIN_DISTANCE = 24  # of 255, from the border's median colour
_PLAIN_SHARE = 0.9  # of the border's pixels
ADVICE = (
    "the method was trained on subjects on white, and what lies behind this one may come along: give --highlight WORD "
    "(with --models FOLDER), --mask or --box, or cut the subject out beforehand"
)


@dataclass(frozen=True)
class Highlight:
    """How the subject of a picture is found. Nothing given leaves the picture as it is.

    Args:
        word: what to detect, such as "head" or "dog".
        mask: a picture of the reference's size, 0 (or transparent) outside the subject.
        box: x1, y1, x2, y2 in pixels; the picture is cropped to it.
    """

    word: str = ""
    mask: Path | BinaryIO | None = None
    box: Box | None = None

    def __bool__(self) -> bool:
        return bool(self.word) or self.mask is not None or self.box is not None

    @classmethod
    def of(cls, word: str | None, mask: Path | BinaryIO | None, box: str | None) -> Highlight:
        """What a user asks for.

        Raises:
            InputError: the box is none, or a word comes with a mask or a box, beside which it would not be looked for.
        """
        if word and (mask is not None or box is not None):
            raise InputError(
                f"highlight {word!r} looks for the subject by itself: leave it out, or the {'mask' if mask else 'box'}"
            )
        return cls(word or "", mask, None if box is None else parse_box(box))


def parse_box(text: str) -> Box:
    """A box from `"x1,y1,x2,y2"`.

    Raises:
        InputError: it is not four finite numbers that span an area.
    """
    try:
        left, top, right, bottom = (float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"box {text!r} is not understood: give x1,y1,x2,y2 in pixels") from error
    if not all(map(math.isfinite, (left, top, right, bottom))) or left >= right or top >= bottom:
        raise InputError(f"box {text!r} spans no area: give x1,y1,x2,y2 with x1 < x2 and y1 < y2")
    return left, top, right, bottom


def open_finder(models: Path | None, *, device: str = "cpu", settings: HighlightSettings | None = None) -> Finder:
    """The detector and the segmenter of a folder of models, which looks for a word.

    Raises:
        InputError: one of them is not there.
    """
    settings, models = settings or HighlightSettings(), check_models(models)
    detect = GroundingDino(models / DETECTOR, settings, device=device)
    segment = Sam(models / SEGMENTER, device=device)

    def find(image: Image.Image, word: str) -> tuple[np.ndarray, Box]:
        box = find_subject(image, word.strip().lower().rstrip(".") + ".", detect, settings)
        return segment(image, box), box

    return find


def check_models(models: Path | None) -> Path:
    """The folder of models, refused before anything loads where one is missing.

    Raises:
        InputError: the detector or the segmenter is not there.
    """
    if models is None:
        raise InputError(
            f"highlighting by a word needs --models FOLDER with {DETECTOR}/ and {SEGMENTER}/ (both in "
            "the transformers format); without them give --mask or --box"
        )
    for name in (DETECTOR, SEGMENTER):
        if not (models / name / "config.json").is_file():
            raise InputError(f"{models} has no {name}/ with config.json: put the model there, or give --mask or --box")
    return models


def highlight_picture(
    image: Image.Image,
    highlight: Highlight,
    *,
    height: int,
    width: int,
    finder: Finder | None = None,
    max_pixels: int = MAX_PIXELS,
) -> tuple[Image.Image, Box]:
    """The subject on white, cropped and padded to the video's size, and the box it was cropped to.

    Args:
        image: RGB.
        highlight: at least one of its values.
        height, width: of the video.
        finder: of `open_finder`, needed for a word.
        max_pixels: of the mask.

    Raises:
        InputError: the mask or the box does not fit, or the word finds no subject, several, or a small one.
    """
    mask = None if highlight.mask is None else read_mask(highlight.mask, max_pixels=max_pixels)
    box = highlight.box
    if mask is None and box is None:
        mask, box = _find(image, highlight.word, finder)
    found = None if mask is None else mask.getbbox()
    if mask is not None and found is None:
        source = highlight.mask or highlight.word
        name = source if isinstance(source, (Path, str)) else getattr(source, "name", "in memory")
        raise InputError(f"mask {name} is empty: nothing of the picture would be left")
    box = box or found
    assert box is not None  # a box, or a mask that is not empty
    try:
        return compose_reference(image, height=height, width=width, mask=mask, box=box), box
    except ValueError as error:
        raise InputError(f"{error}; give the mask and the box of this picture") from error


def _find(image: Image.Image, word: str, finder: Finder | None) -> tuple[Image.Image, Box]:
    if finder is None:
        raise ValueError("a word needs a finder")
    try:
        mask, box = finder(image, word)
    except ClipError as error:
        raise InputError(f"looking for {word!r} found {error.reason}: try another word, or --mask or --box") from error
    return Image.fromarray(mask.astype(np.uint8) * 255), box


def write_highlighted(
    source: Path, folder: Path, highlight: Highlight, *, height: int, width: int, finder: Finder | None = None
) -> Path:
    """Writes the picture that is used in place of `source`, and a JSON of how it came about, beside the results.

    The name holds a digest of the pixels, so that what an earlier record names stays.

    Returns:
        The path of the picture.

    Raises:
        InputError: see `highlight_picture`.
    """
    image = load_reference(source)
    picture, box = highlight_picture(image, highlight, height=height, width=width, finder=finder)
    if box[0] < 0 or box[1] < 0 or box[2] > image.width or box[3] > image.height:
        logger.warning("box %s goes beyond %s of %dx%d pixels: it is cut there", list(box), source, *image.size)
    path = folder / f"{source.stem}.{sha256(picture.tobytes())[:8]}.reference.png"
    with atomic_path(path) as temporary:
        picture.save(temporary)
    story = {
        "source": str(source.resolve()),
        "source_sha256": sha256_of_file(source),
        "word": highlight.word or None,
        "mask": str(highlight.mask.resolve()) if isinstance(highlight.mask, Path) else None,
        "mask_sha256": sha256_of_file(highlight.mask) if isinstance(highlight.mask, Path) else None,
        "box": list(box),
    }
    with atomic_path(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(story, indent=2) + "\n", encoding="utf-8")
    return path


def border_is_plain(image: Image.Image) -> bool:
    """Whether the outermost pixels have one colour, as they do around a subject that was cut out."""
    pixels = np.asarray(image.convert("RGB")).astype(np.int16)
    thickness = max(1, min(image.size) // 50)
    inner = np.zeros(pixels.shape[:2], bool)
    inner[thickness:-thickness, thickness:-thickness] = True
    border = pixels[~inner]
    distance = np.abs(border - np.median(border, axis=0)).max(axis=-1)
    return bool((distance <= _PLAIN_DISTANCE).mean() >= _PLAIN_SHARE)
