"""Pictures: of every kind that people have, turned, damaged, and what is none. Read as a reference and as a mask."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from videomaker.errors import InputError
from videomaker.pictures import load_labels, load_reference

from .case import FILE_NAMES, WRONG_CONTENTS, Case, Rng, flipped, no_file, truncated
from .world import World

# Formats, and the modes that they can hold; `works` where a reference can be made of them.
GOOD = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB"),
    "GIF": ("L", "P"),
    "TIFF": ("1", "L", "RGB", "RGBA", "CMYK", "LAB", "I;16"),
    "PPM": ("L", "RGB"),
}
SUFFIXES = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "BMP": "bmp", "GIF": "gif", "TIFF": "tif", "PPM": "ppm"}
# Rows and columns of a picture that is stored turned, by EXIF's number, as the TIFF standard draws them.
TURNED = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x.swapaxes(0, 1)[::-1],  # what lies right of it is up
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x.swapaxes(0, 1)[:, ::-1],
}


def case(rng: Rng, world: World, folder: Path) -> Case:
    """A picture, and a command or a reader that gets it."""
    make = rng.choices(
        (_good, _truncated, _flipped, _wrong_content, _no_file, _turned, _animated, _bomb, _odd_name, _odd_values),
        (3, 3, 3, 2, 2, 2, 1, 1, 2, 1),
    )[0]
    return make(rng, world, folder)


def draw(rng: Rng, mode: str, size: tuple[int, int] | None = None) -> Image.Image:
    """A picture of a mode, in random sizes and colours."""
    width, height = size or (rng.randint(1, 70), rng.randint(1, 70))
    pixels = np.frombuffer(rng.randbytes(width * height * 3), np.uint8).reshape(height, width, 3)
    if mode == "I;16":
        return Image.fromarray(np.frombuffer(rng.randbytes(width * height * 2), np.uint16).reshape(height, width))
    return Image.fromarray(pixels).convert(mode)


def encoded(rng: Rng) -> tuple[str, str, bytes]:
    """A good picture's format, mode and bytes."""
    kind = rng.pick(GOOD)
    mode = rng.pick(GOOD[kind])
    file = io.BytesIO()
    draw(rng, mode).save(file, kind)
    return kind, mode, file.getvalue()


def _use(rng: Rng, world: World, path: Path, what: str, expect: str) -> Case:
    """The command line, or one of the readers, gets the file."""
    way = rng.choices(("reader", "labels", "bytes", "generate", "mask"), (4, 2, 1, 2, 1))[0]
    if way == "generate":
        words = ["generate", "--model", str(world.model), f"--reference={path}", "-p", "a fox", *world.small()]
        return Case(f"reference: {what}", [*words, "-o", "out.mp4"], expect)
    if way == "mask":
        words = ["generate", "--model", str(world.model), "-r", str(world.picture), "-p", "a fox", *world.small()]
        return Case(f"mask: {what}", [*words, "--mask", str(path), "-o", "out.mp4"], _of_mask(expect))
    if way == "bytes" and path.is_file() and not str(path).startswith("/dev"):
        return Case(f"bytes: {what}", lambda: load_reference(path.read_bytes()), expect)
    read = load_labels if way == "labels" else load_reference
    return Case(f"{way}: {what}", lambda: read(path), expect)


def _of_mask(expect: str) -> str:
    return "either" if expect == "works" else expect  # of another size, or nothing in it: refused, and rightly


def _good(rng: Rng, world: World, folder: Path) -> Case:
    kind, mode, content = encoded(rng)
    path = folder / f"x.{SUFFIXES[kind]}"
    path.write_bytes(content)
    return _use(rng, world, path, f"{kind} {mode}", "works")


def _truncated(rng: Rng, world: World, folder: Path) -> Case:
    kind, mode, content = encoded(rng)
    path = folder / "x.png"
    path.write_bytes(truncated(content, rng))
    return _use(rng, world, path, f"{kind} {mode} cut short", "refused" if len(content) > 600 else "either")


def _flipped(rng: Rng, world: World, folder: Path) -> Case:
    kind, mode, content = encoded(rng)
    path = folder / "x.png"
    path.write_bytes(flipped(content, rng))
    return _use(rng, world, path, f"{kind} {mode} with changed bytes", "either")


def _wrong_content(rng: Rng, world: World, folder: Path) -> Case:
    what = rng.pick(WRONG_CONTENTS)
    path = folder / f"x.{rng.pick(('png', 'jpg', 'webp', 'gif', 'tif', 'svg', 'heic', 'txt'))}"
    path.write_bytes(WRONG_CONTENTS[what])
    return _use(rng, world, path, f"{what} as {path.suffix}", "refused")


def _no_file(rng: Rng, world: World, folder: Path) -> Case:
    what, path = no_file(folder, rng, "x.png")
    return _use(rng, world, path, what, "refused")


def _turned(rng: Rng, world: World, folder: Path) -> Case:
    number = rng.randint(1, 8)
    upright = np.asarray(draw(rng, "RGB"))
    stored, exif = Image.fromarray(np.ascontiguousarray(TURNED[number](upright))), Image.Exif()
    exif[274] = number
    path = folder / f"x.{rng.pick(('png', 'webp'))}"
    stored.save(path, exif=exif, lossless=True)

    def compare() -> None:
        found = np.asarray(load_reference(path))
        assert found.shape == upright.shape and (found == upright).all(), f"EXIF {number} is turned wrongly"

    return Case(f"EXIF {number}", compare, "works")


def _animated(rng: Rng, world: World, folder: Path) -> Case:
    kind = rng.pick(("GIF", "WEBP", "PNG", "TIFF"))
    pictures = [draw(rng, "RGB", (9, 9)) for _ in range(rng.randint(2, 4))]
    path = folder / f"x.{SUFFIXES[kind]}"
    pictures[0].save(path, save_all=True, append_images=pictures[1:])
    return _use(rng, world, path, f"{kind} of several pictures", "refused")


def _bomb(rng: Rng, world: World, folder: Path) -> Case:
    side = rng.pick((9_000, 30_000, 100_000, 2**31 - 1))
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    header = struct.pack(">IIBBBBB", side, side, 8, rng.pick((0, 2, 6)), 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(64)))
    path = folder / "x.png"
    path.write_bytes(content + chunk(b"IEND", b""))
    return _use(rng, world, path, f"a PNG of {side}² pixels", "refused")


def _odd_name(rng: Rng, world: World, folder: Path) -> Case:
    name = rng.pick((*FILE_NAMES, "x" * 251, "é" * 125)) + rng.pick((".png", ".PNG", ""))
    path = Path(os.fsencode(str(folder / name)).decode(errors="surrogateescape"))
    draw(rng, "RGB").save(io_file := io.BytesIO(), "PNG")
    path.write_bytes(io_file.getvalue())
    given = rng.pick((path, Path(f"./{path.name}")))
    words = ["generate", "--model", str(world.model), f"--reference={given}", "-p", "a fox", *world.small()]
    return Case(f"a picture named {name!r}", [*words, "-o", rng.pick(("outputs", "out.mp4"))], "works")


def _odd_values(rng: Rng, world: World, folder: Path) -> Case:
    """32-bit numbers without a range: no picture; labels, if they are whole."""
    values = np.frombuffer(rng.randbytes(400), np.float32 if rng.random() < 0.5 else np.int32).reshape(10, 10)
    path = folder / "x.tif"
    Image.fromarray(values).save(path)
    if rng.random() < 0.5:
        return Case(f"a reference of {values.dtype}", lambda: load_reference(path), "refused")

    def whole() -> None:
        if not (load_labels(path) == values).all():
            raise AssertionError("other labels")

    finite = bool(np.isfinite(values).all() and (values == np.round(values)).all() and (abs(values) < 2**31).all())
    return Case(f"labels of {values.dtype}", whole, "works" if finite else "refused")


__all__ = ["InputError", "case"]
