"""How a stored picture becomes the one that is shown: turned as the camera was held, with square pixels."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .errors import ClipError

if TYPE_CHECKING:
    import av

_LARGEST_ASPECT = 16  # of a pixel; more is damage
# The display matrix maps a picture's axes; Pillow's operation for its signs [[x→x, x→y], [y→x, y→y]].
_TURNS = {
    (1, 0, 0, 1): None,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}
_SIDEWAYS = (
    Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270, Image.Transpose.TRANSPOSE, Image.Transpose.TRANSVERSE,
)  # fmt: skip


@dataclass(frozen=True)
class Geometry:
    """From a stored picture of `stored` (width, height) to the shown one."""

    stored: tuple[int, int]
    square: tuple[int, int]  # the size with square pixels, before it is turned
    turn: Image.Transpose | None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the shown picture."""
        return self.square[::-1] if self.turn in _SIDEWAYS else self.square

    def apply(self, image: Image.Image) -> Image.Image:
        """The shown picture."""
        if self.square != self.stored:
            image = image.resize(self.square, Image.Resampling.BICUBIC)
        return image if self.turn is None else image.transpose(self.turn)


def geometry_of(frame: av.VideoFrame, pixel_aspect: Fraction | None) -> Geometry:
    """The geometry of a decoded frame.

    Args:
        frame: of PyAV; it carries its display matrix.
        pixel_aspect: width by height of a pixel, None or 0 when the file does not say.

    Raises:
        ClipError: the picture is turned by other than right angles.
    """
    stored = (frame.width, frame.height)
    aspect = pixel_aspect or Fraction(1)
    if not 1 / _LARGEST_ASPECT <= aspect <= _LARGEST_ASPECT:
        aspect = Fraction(1)
    # The longer side of the pixel is kept, so that nothing is thrown away.
    one = Fraction(1)
    square = (round(stored[0] * max(aspect, one)), round(stored[1] / min(aspect, one)))
    return Geometry(stored, square, _turn(frame))


def _turn(frame: av.VideoFrame) -> Image.Transpose | None:
    data: Any = frame.side_data.get("DISPLAYMATRIX")  # a buffer, which PyAV's types do not say
    if data is None:
        return None
    matrix = np.frombuffer(data, np.int32).reshape(3, 3)[:2, :2] / 2**16
    scale = np.abs(matrix).max()
    signs = tuple(int(part) for part in np.round(matrix / scale).flatten()) if scale else (1, 0, 0, 1)
    if signs not in _TURNS or np.abs(matrix / max(scale, 1e-9) - np.reshape(signs, (2, 2))).max() > 0.01:
        raise ClipError("turned oddly", f"by {frame.rotation} degrees; rewrite it with `ffmpeg -i IN OUT.mp4`")
    return _TURNS[signs]
