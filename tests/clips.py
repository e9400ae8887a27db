"""Small videos and manifests for tests of the training data and of training."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image

from videomaker.data.dataset import DataConfig

SIZE = 32  # pixels, of the test videos


def index_picture(index: int) -> np.ndarray:
    """A frame that tells its own index: 8 bars, white for a 1 of the binary number, which survives H.264."""
    bits = np.array([255 * (index >> bit & 1) for bit in range(8)], np.uint8)
    return np.broadcast_to(bits.repeat(SIZE // 8)[None, :, None], (SIZE, SIZE, 3))


def picture_index(image) -> int:
    bars = np.asarray(image, float).mean((0, 2)).reshape(8, -1).mean(1)
    return sum(1 << bit for bit in range(8) if bars[bit] > 128)


def write_video(path, num_frames, **settings):
    """A video whose frames show their index; `settings` are those of `encode`."""
    return encode(path, [index_picture(index) for index in range(num_frames)], **settings)


def encode(
    path, pictures, *, codec="libx264", pts=None, options=None, rotation=0, aspect=None, fragments=False, rate=25
):
    path.parent.mkdir(parents=True, exist_ok=True)
    options = dict(options or {})
    flags = {"movflags": "frag_keyframe+empty_moov" if fragments else "faststart"}
    with av.open(str(path), "w", options=flags if path.suffix in (".mp4", ".mov") else {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = pictures[0].shape[:2] if pictures else (SIZE, SIZE)
        stream.pix_fmt = "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        if aspect:
            stream.sample_aspect_ratio = aspect
        container.start_encoding()
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts = pts[index] if pts else index
            container.mux(stream.encode(frame))
        if pictures:
            container.mux(stream.encode())
    return path


def write_lines(path, lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def write_clips(folder: Path, *, train: int = 4, held_out: int = 2, num_frames: int = 8) -> Path:
    """Clips of a random pattern that moves, of two splits; returns their manifest."""
    rng = np.random.default_rng(0)
    lines = []
    for number in range(train + held_out):
        pattern = rng.integers(0, 255, (4, 4, 3), np.uint8).repeat(SIZE // 4, 0).repeat(SIZE // 4, 1)
        encode(folder / f"{number}.mp4", [np.roll(pattern, 4 * i, axis=1) for i in range(num_frames)])
        split = "train" if number < train else "val"
        about = {"caption": f"pattern {number} moves", "num_frames": num_frames, "split": split}
        lines.append({"video": f"{number}.mp4", **about})
    return write_lines(folder / "manifest.jsonl", lines)


def damage(path):
    """Overwrites the second half of the pictures; the header stays."""
    content = path.read_bytes()
    start = content.index(b"mdat") + 4
    start += (len(content) - start) // 2
    path.write_bytes(content[:start] + bytes(len(content) - start))


def masked_clips(root: Path) -> Path:
    """Twelve clips, each with a masked first frame as its reference."""
    lines = []
    for number in range(12):
        write_video(root / f"{number}.mp4", 20 + number, options={"g": "5"})
        mask = np.zeros((SIZE, SIZE), np.uint8)
        mask[8:24, 4:20] = 255
        Image.fromarray(mask).save(root / f"{number}.png")
        lines.append(
            {
                "id": f"clip-{number}",
                "video": f"{number}.mp4",
                "captions": [f"caption {number} a", f"caption {number} b"],
                "num_frames": 20 + number,
                "refs": [{"frame": frame, "mask": f"{number}.png", "box": [4, 8, 20, 24]} for frame in (0, 7)],
                "split": "val" if number == 11 else "train",
            }
        )
    write_lines(root / "manifest.jsonl", lines)
    return root


def config_of(folder, **changes):
    settings = {"num_frames": 3, "frame_stride": 4, "height": SIZE, "width": SIZE, "num_workers": 0, **changes}
    return DataConfig(manifest=str(folder / "manifest.jsonl"), **settings)


def take(loader, count):
    return list(itertools.islice(loader, count))


def assert_same_batches(left, right):
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert torch.equal(a[key], b[key]) if isinstance(a[key], torch.Tensor) else a[key] == b[key], key
