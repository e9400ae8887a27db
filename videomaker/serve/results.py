"""The files of a finished video: mp4, thumbnail, spritesheet, record; named by the lease of whoever made them."""

from __future__ import annotations

import io
import json
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from videomaker import media
from videomaker.digests import sha256

from .config import ServeConfig
from .provenance import Credentials
from .renderer import Made
from .store import Store

THUMBNAIL_SIDE = 256
SHEET_COLUMNS = 4
SHEET_TILE = 160


def make_files(
    made: Made, request: dict[str, Any], config: ServeConfig, credentials: Credentials | None = None
) -> dict[str, tuple[str, str, bytes]]:
    """Variant -> name, media type, content.

    Args:
        made: of a renderer.
        request: as accepted.
        config: how the server treats videos: what was checked is told in the record.
        credentials: sign the mp4, if there are any. The record keeps the digest of the unsigned one, too, which is
            what `generate --from-json` makes again.

    Raises:
        SigningFailed: the video could not be signed.
    """
    video = _mp4(media.enlarge(made.frames, made.upscale), request["fps"])
    record = {
        **made.record,
        "video_sha256": sha256(video),
        "consent": request["consent"],
        "safety_checks": {"request": config.request_check, "frames": config.frames_check},
    }
    if any(stories := [reference.get("highlight") for reference in request["references"]]):
        record["highlight"] = stories  # the pictures that were used are `variant=reference`
    if credentials is not None:
        video = credentials.sign(video, request)
        record["signed_video_sha256"] = sha256(video)
    return {
        "video": ("video.mp4", "video/mp4", video),
        "thumbnail": ("thumbnail.webp", "image/webp", _thumbnail(made.frames)),
        "spritesheet": ("spritesheet.jpg", "image/jpeg", _spritesheet(made.frames)),
        "record": ("record.json", "application/json", json.dumps(record, indent=2, ensure_ascii=False).encode()),
    }


def store_files(store: Store, id: str, lease: str, files: dict[str, tuple[str, str, bytes]]) -> dict[str, Any]:
    """Writes the files below `videos/ID/LEASE/`: variant -> key, type, bytes, sha256, as the row keeps it."""
    described = {}
    for variant, (name, kind, data) in files.items():
        key = f"videos/{id}/{lease}/{name}"
        with suppress(FileExistsError):  # the lease is ours alone: an earlier try whose answer was lost
            store.put(key, data)
        described[variant] = {
            "key": key, "type": kind, "bytes": len(data), "sha256": sha256(data),
        }  # fmt: skip
    store.settle(f"videos/{id}/{lease}")
    return described


def _mp4(frames: np.ndarray, fps: float) -> bytes:
    with tempfile.TemporaryDirectory(prefix="videomaker-") as folder:
        path = Path(folder, "video.mp4")
        media.write_mp4(path, frames, fps=fps)
        return path.read_bytes()


def _thumbnail(frames: np.ndarray) -> bytes:
    image = _scaled(frames[len(frames) // 2], THUMBNAIL_SIDE)
    target = io.BytesIO()
    image.save(target, "WEBP", quality=85, method=2)
    return target.getvalue()


def _spritesheet(frames: np.ndarray) -> bytes:
    """All frames in rows of four, in reading order."""
    tiles = [_scaled(frame, SHEET_TILE) for frame in frames]
    width, height = tiles[0].size
    rows = -(-len(tiles) // SHEET_COLUMNS)
    sheet = Image.new("RGB", (SHEET_COLUMNS * width, rows * height), "white")
    for index, tile in enumerate(tiles):
        sheet.paste(tile, (index % SHEET_COLUMNS * width, index // SHEET_COLUMNS * height))
    target = io.BytesIO()
    sheet.save(target, "JPEG", quality=88)
    return target.getvalue()


def _scaled(frame: np.ndarray, side: int) -> Image.Image:
    image = Image.fromarray(frame)
    factor = side // max(image.size)
    if factor > 1:  # small videos stay sharp
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image
