"""The one reader of pictures and the one of labels: from files, bytes, and Python's arrays, tensors and images."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from videomaker.errors import InputError
from videomaker.files import is_lfs_pointer

if TYPE_CHECKING:
    import torch

Source = str | os.PathLike | bytes | bytearray | memoryview | BinaryIO

MAX_PIXELS = 64_000_000  # 192 MB once decoded; checked against the header, before anything is decoded
# Named, because Pillow would otherwise try every decoder it has, Ghostscript for EPS among them.
_DECODERS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
_STILL_FORMATS = ("JPEG", "MPO")  # an MPO is a JPEG whose further pictures are previews or depth maps
_LOSSY_FORMATS = ("JPEG", "MPO", "WEBP", "AVIF")
_LOSSLESS_WEBP = b"VP8L"  # the name of its chunk, which begins the file
_OPAQUE = 128  # alpha from which a pixel of a cut-out belongs to it


def load_reference(source: Source, *, name: str | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Reads a still picture as RGB: rotated as its EXIF says, transparency over white, 16 bits scaled to 8.

    Args:
        source: a path, the bytes of a file, or an open binary file.
        name: what messages call it; default the path.
        max_pixels: most pixels by the header, which is checked before decoding.

    Raises:
        InputError: the file is missing, unreadable, not a picture, truncated, animated, or too large.
    """
    return _read(source, name, "reference", rgb_over_white, max_pixels)


def load_labels(source: Source, *, name: str | None = None, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Reads a mask or a map of labels, int32 `[H, W]`: 0 outside, any other number a subject's.

    A mask is read by its labels, not by its looks: palettes give their indices and 16 or 32 bits their numbers. A
    cut-out (RGBA, grey with alpha) is 255 where it is opaque; a picture in colours has a label for each colour, black
    outside; of a lossy format the bright half is 255, for its dark half is noise. EXIF turns it like its picture.

    Args:
        source, name, max_pixels: as in `load_reference`.

    Raises:
        InputError: as `load_reference`, or fractions that are no labels.
    """
    return _read(source, name, "mask", _labels, max_pixels)


def decode_reference(file: BinaryIO, name: str, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """`load_reference` of an open file; `name` is what messages call it."""
    return load_reference(file, name=name, max_pixels=max_pixels)


def _read(source: Source, name: str | None, role: str, convert, max_pixels: int):
    name = f"{role} {name or (source if isinstance(source, (str, os.PathLike)) else 'in memory')}"
    with _open(source, name) as file:
        start = file.read(64)
        file.seek(0)
        if not start:
            raise InputError(f"{name} is empty (0 bytes): give a picture")
        if is_lfs_pointer(start):
            raise InputError(f"{name} is a Git LFS pointer, not the picture: fetch it with git lfs pull")
        try:
            with _decode(file) as image:
                _check_header(image, name, max_pixels)
                upright = _upright(image)
                upright.info["lossy"] = image.format in _LOSSY_FORMATS and _LOSSLESS_WEBP not in start
                return convert(upright, name)
        except InputError:
            raise
        except Exception as error:  # of damaged files, each decoder complains in its own way
            raise InputError(f"{name} cannot be read as a picture: {_reason(error, max_pixels)}") from error


def _open(source: Source, name: str) -> BinaryIO:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source)
    if not isinstance(source, (str, os.PathLike)):
        source.seek(0)
        return io.BytesIO(source.read())
    path = Path(source)
    try:
        if not path.is_file():  # a pipe or a device would wait for ever
            problem = "is not a regular file" if path.exists() else "does not exist"
            raise InputError(f"{name} {problem}: give the path of a picture")
        return path.open("rb")
    except (OSError, ValueError) as error:
        raise InputError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _decode(file: BinaryIO) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `_check_header` decides
        return Image.open(file, formats=_DECODERS)


def _check_header(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise InputError(f"{name} has {width}x{height} pixels, more than {max_pixels:,}: scale it down first")
    _check_still(image, name)


def _check_still(image: Image.Image, name: str) -> None:
    count = getattr(image, "n_frames", 1)
    if count > 1 and image.format not in _STILL_FORMATS:
        raise InputError(f"{name} holds {count} pictures: save one of them as a still picture")


def _upright(image: Image.Image) -> Image.Image:
    """Turned as EXIF says; keeps the format, which a copy loses."""
    turned = ImageOps.exif_transpose(image)
    turned.format = image.format
    return turned


def rgb_over_white(image: Image.Image, name: str) -> Image.Image:
    """RGB of 8 bits from any mode; what is transparent is white.

    Raises:
        InputError: 32-bit pixels, whose range nobody knows.
    """
    if image.mode == "I" and image.format == "PNG":  # 16 bits, as Pillow before 11.3 opens them
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise InputError(f"{name} has 32-bit pixels without a known range: save it with 8 bits")
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _reason(error: Exception, max_pixels: int) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"not one of {', '.join(_DECODERS)}"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {max_pixels:,} pixels, scale it down first"
    return " ".join(str(error).split()) or type(error).__name__


def _labels(image: Image.Image, name: str) -> np.ndarray:
    if image.mode == "F":
        return _whole_numbers(np.asarray(image), name)
    lossy = image.info["lossy"]
    if image.has_transparency_data:
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
        if alpha.min() < 255:
            return _cut_out(image, alpha)
    if image.mode in ("P", "1", "L", "I") or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int32)
    else:
        red, green, blue = np.moveaxis(np.asarray(image.convert("RGB")).astype(np.int32), -1, 0)
        if lossy or ((red == green) & (green == blue)).all():
            values = np.maximum(np.maximum(red, green), blue)
        else:
            values = (red << 16) + (green << 8) + blue
    if lossy:
        return np.where(values >= 128, 255, 0).astype(np.int32)
    return values


def _cut_out(image: Image.Image, alpha: np.ndarray) -> np.ndarray:
    if image.mode == "P":
        indices = np.asarray(image).astype(np.int32)
        if ((alpha < _OPAQUE) == (indices == 0)).all():
            return indices
    return np.where(alpha >= _OPAQUE, 255, 0).astype(np.int32)


def _whole_numbers(values: np.ndarray, name: str) -> np.ndarray:
    if not (np.isfinite(values).all() and (values == np.round(values)).all()):
        raise InputError(f"{name} has fractions, which are no labels: save whole numbers")
    return values.astype(np.int32)


def python_picture(
    value: Image.Image | np.ndarray | torch.Tensor, name: str = "reference_image"
) -> Image.Image | torch.Tensor:
    """A picture given in Python, meaning what it means in a file.

    Args:
        value: a PIL image; or an array `[H, W]`, `[H, W, 1 | 3 | 4]` or a tensor `[1 | 3 | 4, H, W]`, of uint8 in
            0..255 or floating in 0..1. A fourth channel is alpha.
        name: what messages call it.

    Returns:
        A PIL image in RGB, or for floating numbers float32 `[3, H, W]` in 0..1, a torch tensor.

    Raises:
        InputError: another type, shape or range, or numbers that are not finite.
    """
    if isinstance(value, Image.Image):
        _check_still(value, name)
        if not all(value.size):
            raise InputError(f"{name} has {value.width}x{value.height} pixels: give a picture")
        try:
            return rgb_over_white(_upright(value), name)
        except (OSError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{name} cannot be read as a picture: {' '.join(str(error).split())}") from error
    return _from_channels(_channels_first(value, name), name)


def _channels_first(value, name: str) -> torch.Tensor:
    import torch  # not needed to read files

    if isinstance(value, np.ndarray):
        try:
            tensor = torch.from_numpy(np.ascontiguousarray(value, value.dtype.newbyteorder("=")))
        except TypeError as error:
            raise InputError(f"{name} is an array of {value.dtype}: give uint8 in 0..255 or floats in 0..1") from error
        tensor = tensor[..., None] if tensor.ndim == 2 else tensor
        tensor = tensor.permute(2, 0, 1) if tensor.ndim == 3 else tensor
    elif isinstance(value, torch.Tensor):
        if value.layout != torch.strided or value.is_meta:
            raise InputError(f"{name} is a tensor without dense numbers: give an ordinary one")
        tensor = value.detach()
        tensor = tensor[None] if tensor.ndim == 2 else tensor
    else:
        raise InputError(f"{name} is a {type(value).__name__}: give a PIL image, a NumPy array or a tensor")
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3, 4) or not tensor.numel():
        layout = "[H, W, 1, 3 or 4]" if isinstance(value, np.ndarray) else "[1, 3 or 4, H, W]"
        raise InputError(f"{name} has shape {tuple(value.shape)}: give {layout}")
    return tensor


def _from_channels(picture: torch.Tensor, name: str):
    """RGB over white from `[1 | 3 | 4, H, W]`."""
    import torch

    if picture.dtype == torch.uint8:
        array = picture.permute(1, 2, 0).cpu().numpy()
        return rgb_over_white(Image.fromarray(array[..., 0] if array.shape[2] == 1 else array), name)
    if not picture.is_floating_point():
        raise InputError(f"{name} has numbers of {picture.dtype}: give uint8 in 0..255 or floats in 0..1")
    picture = picture.float().cpu()
    low, high = picture.min().item(), picture.max().item()
    if not (torch.isfinite(picture).all() and low >= 0 and high <= 1):
        raise InputError(f"{name} has floats from {low:.7g} to {high:.7g}: give 0..1, or uint8 in 0..255")
    if picture.shape[0] == 4:
        picture = picture[:3] * picture[3:] + (1 - picture[3:])
    return picture.expand(3, -1, -1)
