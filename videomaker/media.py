"""Pictures in, videos out: pictures read by `videomaker.pictures`, mp4, GIF or frames written, contact sheets.

Frames are arrays `[F, H, W, 3]` of uint8 RGB throughout.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from math import gcd
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, ImageSequence

from videomaker.errors import InputError
from videomaker.media_limits import default_upscale
from videomaker.pictures import MAX_PIXELS, decode_reference, load_labels, load_reference

__all__ = [
    "MAX_PIXELS", "contact_sheet", "decode_reference", "default_upscale", "enlarge", "fit_reference",
    "gif_repeats", "list_images", "load_labels", "load_reference", "local_url", "read_frames", "read_gif",
    "sheet_row", "write", "write_frames", "write_gif", "write_mp4",
]  # fmt: skip

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".avif")
GIF_TICK = 10  # milliseconds: what durations are counted in
DRAWING_SIDE = 64  # pictures up to this are enlarged without smoothing
_DIGITS = re.compile(r"([0-9]+)")
SHEET_FRAMES = 8
SHEET_TILE = 192
SHEET_GAP = 8
SHEET_ROW = SHEET_TILE + 24  # pixels: the tile and its caption
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
    with av.open(
        local_url(path), "w", format="mp4", options={"movflags": "+faststart", "fflags": "+bitexact"}
    ) as container:
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


def local_url(path: str | os.PathLike) -> str:
    """A path as FFmpeg takes it: without the scheme, `12:30.mp4` and `pipe:0` would name protocols."""
    return f"file:{path}"


def write_gif(path: Path, frames: np.ndarray, *, fps: float) -> None:
    """Writes a looping GIF with one palette for all frames, so that still parts do not flicker.

    GIF counts in hundredths of a second: durations are rounded so that their sum stays right. Pillow writes frames that
    are equal as one that lasts longer, which `read_frames` undoes.
    """
    num_frames, height, width, _ = frames.shape
    palette = Image.fromarray(frames.reshape(num_frames * height, width, 3)).quantize(256)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for frame in frames]
    starts = [round(100 * index / fps) for index in range(num_frames + 1)]
    durations = [GIF_TICK * (end - start) for start, end in pairwise(starts)]  # milliseconds
    images[0].save(path, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)


def write_frames(folder: Path, frames: np.ndarray) -> None:
    """Writes `0000.png`, `0001.png`, … into an existing folder."""
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{index:04d}.png")


def read_frames(path: Path, *, fps: float = 8) -> np.ndarray:
    """The frames `[F, H, W, 3]` of an mp4, a GIF, or a folder of PNG, in the order of the numbers in their names.

    Frames that a GIF holds once, for longer, come as often as they are shown; `fps` as in `gif_repeats`.
    """
    if path.is_dir():
        return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in _numbered(path)])
    if path.suffix == ".gif":
        frames, durations = read_gif(path)
        return frames.repeat(gif_repeats(durations, fps), axis=0)
    with av.open(local_url(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def read_gif(file: Path | BinaryIO) -> tuple[np.ndarray, list[int]]:
    """The frames `[F, H, W, 3]` that a GIF holds, and how long each is shown in milliseconds (0: it does not say)."""
    with Image.open(file) as image:
        shown = ((frame.convert("RGB"), frame.info.get("duration", 0)) for frame in ImageSequence.Iterator(image))
        frames, durations = zip(*((np.asarray(frame), duration) for frame, duration in shown), strict=True)
    return np.stack(frames), list(durations)


def gif_repeats(durations: Sequence[int], fps: float) -> list[int]:
    """How many frames of a video each of a GIF's stands for: Pillow writes equal ones as one that lasts longer.

    All durations are multiples of what a frame of the video lasts, but for the hundredth of a second that a GIF rounds
    to: that of `fps`, or else the shortest of them, or half, a third, a quarter of it.

    Args:
        durations: of `read_gif`.
        fps: how fast the video probably is; alone decides for one that stands still.
    """
    shortest, usual = min(durations), 1000 / fps
    if len(durations) == 1:
        return [max(1, round(shortest / usual))]
    if shortest <= 0:
        return [1] * len(durations)
    spans = [(shortest + rest) / parts for parts in (1, 2, 3, 4) for rest in range(GIF_TICK)]
    for span in (usual, int(usual), *spans):  # diffusers' export_to_gif cuts milliseconds
        repeats = [round(duration / span) for duration in durations]
        fits = all(abs(duration - span * times) <= GIF_TICK for duration, times in zip(durations, repeats, strict=True))
        if fits and all(repeats) and gcd(*repeats) == 1:
            return repeats
    return [round(duration / shortest) for duration in durations]  # it keeps no rate


def _numbered(folder: Path) -> list[Path]:
    """A folder's PNG files, `2.png` before `10.png`; hidden ones are left out."""
    files = (file for file in folder.iterdir() if file.suffix.lower() == ".png" and not file.name.startswith("."))
    return sorted(files, key=lambda file: [int(part) if part.isdigit() else part for part in _DIGITS.split(file.name)])


def sheet_row(references: Sequence[Image.Image], frames: np.ndarray, caption: str) -> Image.Image:
    """One row of a contact sheet: the references, a gap, up to eight frames evenly over time, the caption below."""
    picked = np.linspace(0, len(frames) - 1, min(SHEET_FRAMES, len(frames))).round().astype(int)
    tiles = [*map(_tile, references), *(_tile(Image.fromarray(frames[index])) for index in picked)]
    gaps = [SHEET_GAP] * (len(tiles) - 1)
    gaps[len(references) - 1] *= 3  # sets the references apart
    row = Image.new("RGB", (sum(tile.width for tile in tiles) + sum(gaps), SHEET_ROW), SHEET_COLOUR)
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
