"""How much damage `videomaker data check` finds: clips with a few random bytes changed, and what their pixels then say.

A clip counts as harmed when a frame that training may read differs by more than `--tolerance` of 255 on average from
the undamaged clip's. The last line is one JSON document.

    python bench/damaged_clips.py --clips 200
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import av
import numpy as np
import torch
from videomaker.train.run_folder import source_commit

from videomaker.data.check import check_manifest
from videomaker.data.manifest import Clip, write_manifest
from videomaker.data.video import ClipError, open_video
from videomaker.environment import machine, versions

FRAMES, SIDE = 48, 128


def draw_film(seed: int) -> np.ndarray:
    """Frames `[F, S, S, 3]`: soft shapes that move over a soft background, with a little noise as a camera has."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE
    phases, speeds = rng.uniform(0, 6.28, (4, 3)), rng.uniform(-0.2, 0.2, (4, 3))
    frames = []
    for index in range(FRAMES):
        waves = [
            np.sin(6.28 * (k + 1) * (rows * (k % 2) + columns * (1 - k % 2))[..., None] + phases[k] + index * speeds[k])
            for k in range(4)
        ]
        picture = 128 + 28 * sum(waves) + rng.normal(0, 3, (SIDE, SIDE, 1))
        frames.append(picture.clip(0, 255).astype(np.uint8))
    return np.stack(frames)


def encode(path: Path, frames: np.ndarray, *, codec: str) -> None:
    """Writes a clip as cameras do: groups of twelve pictures, B-frames, the index in front."""
    with av.open(str(path), "w", options={"movflags": "faststart"} if path.suffix == ".mp4" else {}) as container:
        stream = container.add_stream(codec, rate=25, options={"g": "12", "bf": "2"})
        stream.height, stream.width, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        for index, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def damage(path: Path, rng: np.random.Generator) -> int:
    """Changes 1 to 200 random bytes after the first kilobyte, where the header is; returns how many."""
    content = bytearray(path.read_bytes())
    count = int(rng.integers(1, 201))
    for place in rng.integers(min(1024, len(content) // 2), len(content), count):
        content[place] ^= int(rng.integers(1, 256))
    path.write_bytes(content)
    return count


def worst_difference(path: Path, truth: list[np.ndarray]) -> float | None:
    """The largest mean difference of a frame that the reader gives out; None: it gives out no frame."""
    worst = None
    for index, expected in enumerate(truth):
        try:
            with open_video(path) as video:
                seen = np.asarray(video.read([index])[0], float)
        except ClipError:
            continue
        difference = float(np.abs(seen - expected).mean()) if seen.shape == expected.shape else 255.0
        worst = max(worst or 0.0, difference)
    return worst


def frames_of(path: Path) -> list[np.ndarray]:
    """All frames as the reader gives them."""
    with open_video(path) as video:
        return [np.asarray(frame, float) for frame in video.read(range(video.num_frames))]


def main() -> None:
    """Damages the clips, checks them and compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--tolerance", type=float, default=2.0, help="of 255")
    parser.add_argument("--codec", default="libx264", help="libx264, libx265, mpeg4, libvpx-vp9, …")
    parser.add_argument("--container", default="mp4")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commit", default="", help="of the code, where this is not a git checkout")
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        harm: dict[str, float | None] = {}
        for number in range(options.clips):
            path = folder / f"{number}.{options.container}"
            encode(path, draw_film(number), codec=options.codec)
            truth = frames_of(path)
            damage(path, rng)
            harm[path.stem] = worst_difference(path, truth)
        clips = [Clip(id=name, video=f"{name}.{options.container}", captions=("x",)) for name in harm]
        write_manifest(folder / "manifest.jsonl", clips)
        report = check_manifest(folder / "manifest.jsonl")
    passed = {clip.id for clip in report.good}
    harmed = {name for name, worst in harm.items() if worst is None or worst > options.tolerance}
    missed = sorted(harmed & passed)
    result = {
        "clips": options.clips, "codec": options.codec, "container": options.container,
        "tolerance": options.tolerance, "harmed": len(harmed), "found": len(harmed - passed), "missed": len(missed),
        "missed_differences": [round(harm[name] or 255, 2) for name in missed],
        "refused_though_harmless": len(set(harm) - passed - harmed), "reasons": report.counts,
        "machine": machine(torch.device("cpu")), "versions": versions(), "commit": options.commit or source_commit(),
    }  # fmt: skip
    print(f"{len(harmed)} of {options.clips} clips harmed; the check finds {len(harmed) - len(missed)} of them")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
