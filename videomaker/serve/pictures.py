"""References on their way to a worker: as they were sent or, where that is smaller, raw pixels in the video's shape.

Encoding a picture as PNG costs more than all the rest of accepting a job; a photograph of many megapixels would cost
the worker more than its pixels in the video's shape.
"""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from typing import Any

from PIL import Image

from videomaker import media
from videomaker.digests import sha256

PIXELS = ".ppm"  # the suffix of raw pixels in the video's shape
_HEADER = b"P6 %d %d 255\n"


@dataclass(frozen=True)
class Upload:
    """A picture as it came: decoded, upright, RGB; the bytes that were sent, and their SHA-256."""

    image: Image.Image
    data: bytes
    sha256: str


def decode(data: bytes, name: str, *, max_pixels: int) -> Upload:
    """Reads a picture that was sent; `media` decides what it is, whatever its sender says.

    Raises:
        InputError: it is none, or too large.
    """
    image = media.decode_reference(io.BytesIO(data), name, max_pixels=max_pixels)
    return Upload(image, data, sha256(data))


def to_file(upload: Upload, shape: dict[str, Any]) -> tuple[str, bytes]:
    """What is kept of a picture for a video of `width`, `height` and `fit`: a suffix and the content."""
    width, height = shape["width"], shape["height"]
    if len(upload.data) <= 3 * width * height:
        return ".upload", upload.data
    return PIXELS, to_ppm(media.fit_reference(upload.image, width, height, shape["fit"]))


def from_file(key: str, data: bytes, shape: dict[str, Any]) -> Image.Image:
    """The picture of `to_file` in the video's shape."""
    if key.endswith(PIXELS):
        return from_ppm(data)
    image = media.decode_reference(io.BytesIO(data), key, max_pixels=sys.maxsize)  # it was not too large when it came
    return media.fit_reference(image, shape["width"], shape["height"], shape["fit"])


def to_ppm(image: Image.Image) -> bytes:
    """The pixels of an RGB picture, as a file."""
    return _HEADER % image.size + image.tobytes()


def from_ppm(data: bytes) -> Image.Image:
    """The picture of `to_ppm`."""
    return Image.open(io.BytesIO(data), formats=["PPM"]).convert("RGB")


def to_png(image: Image.Image) -> bytes:
    """A picture as browsers show it."""
    target = io.BytesIO()
    image.save(target, "PNG", compress_level=1)
    return target.getvalue()
