"""Seams of long videos: what the windows of `pipe(num_frames=32)` cost against a video of one window.

    python bench/windows.py --clips 24 --frames 32 --overlaps 2 4 6 --output FILE

In the sprite world every piece of eight frames is measured like a video of its own: is the creature retrieved among 15
others, with its pattern, colours, motion and background, and do its colours stay? A step is how far the creature moves
from one frame to the next, in cells of the world, where no motion moves by more than one. "fresh" draws new noise for
every frame instead of shuffling the first window's. Motions are one glide of eight frames, so in a longer video only
standing and jumping have a meaning: their motion is counted apart. Prints a row a kind and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import fields
from pathlib import Path

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import numpy as np
import torch
from measure import environment
from PIL import Image
from tqdm import tqdm

from videomaker import VideoMakerPipeline, default_model_path
from videomaker.evaluation.sprites import Case, SpriteSuite, sprite_cases
from videomaker.files import atomic_path
from videomaker.sprites.measure import ClipScores, Search, nearest_background, score_clip, to_canvas
from videomaker.sprites.world import CELL, NUM_FRAMES, draw_background

PERIODIC = ("standing", "jumping")
FAR = 1.5  # cells
BATCH = 8  # videos at once


def make(pipe: VideoMakerPipeline, cases: list[Case], frames: int, overlap: int | None, fresh: bool) -> np.ndarray:
    """Videos `[B, F, 32, 32, 3]` in 0-255."""
    side, channels = pipe.unet.config.sample_size, pipe.unet.config.in_channels
    generators = [torch.Generator().manual_seed(case.seed) for case in cases]
    latents = None
    if fresh:
        latents = torch.cat([torch.randn(1, channels, frames, side, side, generator=one) for one in generators])
    made = pipe(
        [case.clip.caption for case in cases],
        [[Image.fromarray(case.portrait)] for case in cases],
        num_frames=frames,
        generator=generators,
        latents=latents,
        window_frames=None if overlap is None else NUM_FRAMES,
        window_overlap=overlap,
        output_type="np",
    ).frames
    return (np.asarray(made) * 255).round()


def steps(video: np.ndarray, case: Case) -> np.ndarray:
    """How far the creature moves from frame to frame, in cells, `[F - 1]`."""
    canvas = to_canvas(video)
    search = Search(canvas, draw_background(nearest_background(canvas, case.reference_background)))
    [found] = search.find([case.clip.creature])
    return np.hypot(np.diff(found.rows), np.diff(found.columns)) / CELL


def measure(videos: np.ndarray, cases: list[Case]) -> dict[str, float | None]:
    """Means over all pieces of eight frames, and over all pairs of frames."""
    scores, motions, moved = [], [], []
    for video, case in zip(videos, cases, strict=True):
        for start in range(0, len(video) - NUM_FRAMES + 1, NUM_FRAMES):
            rng = np.random.default_rng(case.seed)
            piece = video[start : start + NUM_FRAMES]
            score = score_clip(piece, case.clip, reference_background=case.reference_background, rng=rng)
            scores.append(score)
            if case.clip.motion in PERIODIC:
                motions.append(score.motion)
        moved.append(steps(video, case))
    means = {
        field.name: float(np.mean([getattr(score, field.name) for score in scores])) for field in fields(ClipScores)
    }
    borders = np.arange(1, videos.shape[1]) % NUM_FRAMES == 0
    far = np.stack(moved) > FAR
    at_borders = float(far[:, borders].mean()) if borders.any() else None
    periodic = float(np.mean(motions)) if motions else None
    return {**means, "periodic_motion": periodic, "far_steps": float(far.mean()), "far_steps_at_borders": at_borders}


def main() -> None:
    """Measures one window, then every kind of long video."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=default_model_path())
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--overlaps", type=int, nargs="+", default=[2, 4, 6])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, metavar="FILE")
    options = parser.parse_args()
    pipe = VideoMakerPipeline.from_pretrained(options.model)
    pipe.set_progress_bar_config(disable=True)
    cases = sprite_cases(SpriteSuite(clips=options.clips, seed=options.seed))
    kinds = [("one window", NUM_FRAMES, None, False)]
    kinds += [(f"overlap {overlap}", options.frames, overlap, False) for overlap in options.overlaps]
    kinds += [(f"overlap {NUM_FRAMES // 2}, fresh noise", options.frames, NUM_FRAMES // 2, True)]
    about = {"clips": options.clips, "frames": options.frames, "window": NUM_FRAMES, "seed": options.seed}
    header = {"environment": environment(torch.device("cpu")), "suite": about}
    rows: dict[str, dict[str, float | None]] = {}
    for name, frames, overlap, fresh in tqdm(kinds, disable=None):
        batches = [cases[start : start + BATCH] for start in range(0, len(cases), BATCH)]
        videos = np.concatenate([make(pipe, batch, frames, overlap, fresh) for batch in batches])
        rows[name] = measure(videos, cases)
        print(name, {key: value if value is None else round(value, 3) for key, value in rows[name].items()}, flush=True)
        _write(options.output, {**header, "rows": rows})
    print(json.dumps({**header, "rows": rows}))


def _write(path: Path | None, result: dict) -> None:
    """What is measured so far."""
    if path:
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
