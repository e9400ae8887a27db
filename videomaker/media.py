"""Pictures in, videos out: reading references safely, writing mp4, GIF or frames, and contact sheets.

Frames are arrays `[F, H, W, 3]` of uint8 RGB throughout.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, ImageSequence, UnidentifiedImageError

from videomaker.errors import InputError

MAX_PIXELS = 64_000_000  # 192 MB once decoded; checked against the header, before anything is decoded
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".avif")
# Named, because Pillow would otherwise try every decoder it has, Ghostscript for EPS among them.
_DECODERS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
_STILL_FORMATS = ("JPEG", "MPO")  # an MPO is a JPEG whose further pictures are previews or depth maps

DRAWING_SIDE = 64  # pictures up to this are enlarged without smoothing
TINY_SIDE = 128  # videos with a shorter side up to this are enlarged ...
VISIBLE_SIDE = 256  # ... to at least this, unless asked otherwise
SHEET_FRAMES = 8
SHEET_TILE = 192
SHEET_GAP = 8
SHEET_COLOUR = (244, 244, 244)  # not white, which references often have around the subject


def list_images(folder: Path) -> list[Path]:
    """The pictures directly in a folder, by name; hidden files are left out.

    Raises:
        InputError: there are none.
    """
    images = sorted(
        path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )
    if not images:
        raise InputError(f"no picture in folder {folder}: expected files such as .png, .jpg or .webp")
    return images


def load_reference(path: Path, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Reads a still picture as RGB: rotated as its EXIF says, transparency over white.

    Raises:
        InputError: the file is missing, unreadable, not a picture, truncated, animated, or has more than
            `max_pixels` pixels by its header, which is checked before decoding.
    """
    path = Path(path)
    if not path.is_file():
        problem = "is not a regular file" if path.exists() else "does not exist"
        raise InputError(f"reference {path} {problem}: give the path of a picture")
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"reference {path} cannot be read: {error.strerror}") from error
    with file:
        return decode_reference(file, str(path), max_pixels=max_pixels)


def decode_reference(file: BinaryIO, name: str, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """As `load_reference`, from an open file; `name` is what messages call it.

    Raises:
        InputError: as there.
    """
    if not file.read(1):
        raise InputError(f"reference {name} is empty (0 bytes): give a picture")
    file.seek(0)
    try:
        with _open_image(file) as image:
            _check_header(image, name, max_pixels)
            return _rgb_over_white(ImageOps.exif_transpose(image), name)
    except InputError:
        raise
    except Exception as error:  # of damaged files, each decoder complains in its own way
        raise InputError(f"reference {name} cannot be read as a picture: {_reason(error, max_pixels)}") from error


def _open_image(file: BinaryIO) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `_check_header` decides
        return Image.open(file, formats=_DECODERS)


def _check_header(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise InputError(f"reference {name} has {width}x{height} pixels, more than {max_pixels:,}: scale it down first")
    if getattr(image, "n_frames", 1) > 1 and image.format not in _STILL_FORMATS:
        raise InputError(f"reference {name} holds {image.n_frames} pictures: save one of them as a still picture")


def _rgb_over_white(image: Image.Image, name: str) -> Image.Image:
    if image.mode in ("I", "F"):
        raise InputError(f"reference {name} has 32-bit pixels without a known range: save it with 8 bits")
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
    return str(error) or type(error).__name__


def fit_reference(image: Image.Image, width: int, height: int, fit: str) -> Image.Image:
    """Gives a picture the video's shape: `"stretch"` as the paper does, `"pad"` with white around, or `"crop"`.

    A picture of a few pixels is a drawing whose edges stay sharp when it grows.
    """
    size = (width, height)
    drawing = max(image.size) <= DRAWING_SIDE and max(image.size) < min(size)
    resampling = Image.Resampling.NEAREST if drawing else Image.Resampling.LANCZOS
    if fit == "pad":
        return ImageOps.pad(image, size, resampling, color="white")
    if fit == "crop":
        return ImageOps.fit(image, size, resampling)
    return image.resize(size, resampling)


def default_upscale(height: int, width: int) -> int:
    """How many times a video is enlarged when written: more than once only when it is tiny."""
    short_side = min(height, width)
    return math.ceil(VISIBLE_SIDE / short_side) if short_side <= TINY_SIDE else 1


def enlarge(frames: np.ndarray, factor: int) -> np.ndarray:
    """Repeats every pixel `factor` times along height and width, so that small videos stay sharp."""
    return frames.repeat(factor, axis=1).repeat(factor, axis=2)


def write(path: Path, frames: np.ndarray, file_format: str, *, fps: float) -> None:
    """Writes frames as `"mp4"`, `"gif"`, or `"frames"`, for which `path` is an existing folder."""
    if file_format == "frames":
        write_frames(path, frames)
    elif file_format == "gif":
        write_gif(path, frames, fps=fps)
    else:
        write_mp4(path, frames, fps=fps)


def write_mp4(path: Path, frames: np.ndarray, *, fps: float, pix_fmt: str = "yuv420p", crf: int = 17) -> None:
    """Writes H.264 that every player shows: yuv420p, BT.709, the index in front. The same frames give the same bytes.

    yuv420p halves the colour's resolution, so an odd height or width gets its last row or column twice. Training data
    may be written finer than every player shows it: `pix_fmt="yuv444p"` and a lower `crf`.

    Raises:
        OSError: the file cannot be written.
    """
    _, height, width, _ = frames.shape
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    rate = Fraction(fps).limit_denominator(1001)
    with av.open(path, "w", format="mp4", options={"movflags": "+faststart", "fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        # One thread, because the number of threads changes the bits; no B-frames, so that time starts at zero.
        stream.options = {"crf": str(crf), "preset": "slow", "threads": "1", "bf": "0"}
        codec = stream.codec_context
        codec.colorspace = codec.color_primaries = codec.color_trc = 1  # BT.709 in H.273
        for index, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
            frame = frame.reformat(format=pix_fmt, dst_colorspace="ITU709")
            frame.pts, frame.time_base = index, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_gif(path: Path | BinaryIO, frames: np.ndarray, *, fps: float) -> None:
    """Writes a looping GIF with one palette for all frames, so that still parts do not flicker.

    GIF counts in hundredths of a second: durations are rounded so that their sum stays right.
    """
    num_frames, height, width, _ = frames.shape
    palette = Image.fromarray(frames.reshape(num_frames * height, width, 3)).quantize(256)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for frame in frames]
    starts = [round(100 * index / fps) for index in range(num_frames + 1)]
    durations = [10 * (end - start) for start, end in pairwise(starts)]  # milliseconds
    images[0].save(path, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)


def write_frames(folder: Path, frames: np.ndarray) -> None:
    """Writes `0000.png`, `0001.png`, … into an existing folder."""
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{index:04d}.png")


def read_frames(path: Path) -> np.ndarray:
    """The frames `[F, H, W, 3]` of what the writers above wrote: an mp4, a GIF, or a folder of frames."""
    if path.is_dir():
        return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in sorted(path.glob("*.png"))])
    if path.suffix == ".gif":
        with Image.open(path) as image:
            return np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)])
    with av.open(path) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def sheet_row(references: Sequence[Image.Image], frames: np.ndarray, caption: str) -> Image.Image:
    """One row of a contact sheet: the references, a gap, up to eight frames evenly over time, the caption below."""
    picked = np.linspace(0, len(frames) - 1, min(SHEET_FRAMES, len(frames))).round().astype(int)
    tiles = [*map(_tile, references), *(_tile(Image.fromarray(frames[index])) for index in picked)]
    gaps = [SHEET_GAP] * (len(tiles) - 1)
    gaps[len(references) - 1] *= 3  # sets the references apart
    row = Image.new("RGB", (sum(tile.width for tile in tiles) + sum(gaps), SHEET_TILE + 24), SHEET_COLOUR)
    left = 0
    for tile, gap in zip(tiles, [*gaps, 0], strict=True):
        row.paste(tile, (left, (SHEET_TILE - tile.height) // 2))
        left += tile.width + gap
    ImageDraw.Draw(row).text((0, SHEET_TILE + 4), caption, fill="black", font=ImageFont.load_default(14))
    return row


def _tile(image: Image.Image) -> Image.Image:
    """The image inside a square tile: small ones enlarged by whole pixels, large ones scaled down."""
    factor = SHEET_TILE // max(image.size)
    if factor:
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    return ImageOps.contain(image, (SHEET_TILE, SHEET_TILE), Image.Resampling.LANCZOS)


def contact_sheet(rows: Sequence[Image.Image]) -> Image.Image:
    """Rows of `sheet_row`, one below the other."""
    width = max(row.width for row in rows) + 2 * SHEET_GAP
    height = sum(row.height + SHEET_GAP for row in rows) + SHEET_GAP
    sheet = Image.new("RGB", (width, height), SHEET_COLOUR)
    top = SHEET_GAP
    for row in rows:
        sheet.paste(row, (SHEET_GAP, top))
        top += row.height + SHEET_GAP
    return sheet
