"""Small videos with their manifest, for tests of training."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np

SIZE = 32  # pixels


def write_clips(folder: Path, *, train: int = 4, held_out: int = 2, num_frames: int = 8) -> Path:
    """Writes clips of a moving random pattern; returns the manifest."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = []
    for number in range(train + held_out):
        pattern = rng.integers(0, 255, (4, 4, 3), np.uint8).repeat(SIZE // 4, 0).repeat(SIZE // 4, 1)
        _write_video(folder / f"{number}.mp4", [np.roll(pattern, 4 * i, axis=1) for i in range(num_frames)])
        split = "train" if number < train else "val"
        about = {"caption": f"pattern {number} moves", "num_frames": num_frames, "split": split}
        lines.append({"video": f"{number}.mp4", **about})
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return manifest


def _write_video(path: Path, frames: list[np.ndarray]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
