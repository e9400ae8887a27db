"""References on their way to a worker: raw pixels (PPM) in the shape of the video.

Encoding a picture as PNG costs more than all the rest of accepting a job, and the worker would only decode it again.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image

from videomaker import media
from videomaker.digests import sha256

_HEADER = b"P6 %d %d 255\n"


@dataclass(frozen=True)
class Upload:
    """A picture as it came: decoded, upright, RGB; and the SHA-256 of the bytes that were sent."""

    image: Image.Image
    sha256: str


def decode(data: bytes, name: str, *, max_pixels: int) -> Upload:
    """Reads a picture that was sent; `media` decides what it is, whatever its sender says.

    Raises:
        InputError: it is none, or too large.
    """
    image = media.decode_reference(io.BytesIO(data), name, max_pixels=max_pixels)
    return Upload(image, sha256(data))


def to_ppm(image: Image.Image) -> bytes:
    """The pixels of an RGB picture, as a file."""
    return _HEADER % image.size + image.tobytes()


def from_ppm(data: bytes) -> Image.Image:
    """The picture of `to_ppm`."""
    return Image.open(io.BytesIO(data), formats=["PPM"]).convert("RGB")


def to_png(data: bytes) -> bytes:
    """A stored picture as browsers show it."""
    target = io.BytesIO()
    from_ppm(data).save(target, "PNG", compress_level=1)
    return target.getvalue()
