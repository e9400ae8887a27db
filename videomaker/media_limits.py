"""What the writers of videos can make, said before any video is computed. Light: loads no codec."""

from __future__ import annotations

import math

from videomaker.errors import InputError

TINY_SIDE = 128  # videos with a shorter side up to this are enlarged ...
VISIBLE_SIDE = 256  # ... to at least this, unless asked otherwise
MAX_MP4_SIDE = 16_384  # pixels, of H.264
MAX_GIF_SIDE = 65_535  # pixels
MAX_GIF_FPS = 50  # a GIF counts in hundredths of a second, and players slow down what lasts only one
MAX_WRITTEN_BYTES = 2**32  # of all frames as they are written, which lie in memory


def default_upscale(height: int, width: int) -> int:
    """How many times a video is enlarged when written: more than once only when it is tiny."""
    short_side = min(height, width)
    return math.ceil(VISIBLE_SIDE / short_side) if short_side <= TINY_SIDE else 1


def check_writer(file_format: str, num_frames: int, height: int, width: int, fps: float) -> None:
    """Refuses a video that cannot be written.

    Args:
        file_format: `"mp4"`, `"gif"` or `"frames"`.
        num_frames: F.
        height, width: in pixels, as written.
        fps: frames a second.

    Raises:
        InputError: with the limit.
    """
    side = {"mp4": MAX_MP4_SIDE, "gif": MAX_GIF_SIDE}.get(file_format)
    if side is not None and max(height, width) > side:
        raise InputError(f"{width}x{height} pixels are more than the {side} a side of {file_format}: lower --upscale")
    if num_frames * height * width * 3 > MAX_WRITTEN_BYTES:
        raise InputError(f"{num_frames} frames of {width}x{height} are too large to write: lower --upscale or the size")
    if file_format == "gif" and fps > MAX_GIF_FPS:
        raise InputError(f"{fps:g} frames a second are more than the {MAX_GIF_FPS} of a GIF: lower --fps or write .mp4")
