"""Sprite clips as files: mp4 videos, portraits with masks, and the manifest that training reads."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from videomaker import media
from videomaker.files import atomic_path, check_results_folder

from .world import (
    CANVAS,
    ENLARGEMENT,
    FPS,
    NUM_FRAMES,
    SMALL,
    draw_clip,
    draw_portrait,
    enlarge,
    random_background,
    random_clip,
)

_NAME = re.compile(r"\d+(-small[\d.e-]+)?-\d{6,}")  # SEED-NUMBER, or SEED-smallSHARE-NUMBER
VAL_EVERY = 50  # every so many clips, one is held out; it shows a creature of the test split


def write_dataset(out: Path, *, clips: int, seed: int = 0, small: float = SMALL) -> Path:
    """Writes `clips` clips and returns the manifest's path. Clips that are already there are kept.

    A clip's content depends only on `seed`, its number and the share of `small` creatures, all in its name. Its
    reference is the creature's portrait, mirrored or not, on a background of its own, with a mask; so the training can
    highlight the subject or leave the frame raw.

    Raises:
        InputError: `out` has a manifest of other clips.
    """
    from videomaker.data.manifest import write_manifest

    check_results_folder(out, ["manifest.jsonl"], _is_ours)
    for folder in ("videos", "references", "masks"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    numbers = tqdm(range(clips), desc="sprites", unit="clip")
    series = f"{seed}" if small == SMALL else f"{seed}-small{float(small)}"
    lines = [_write_clip(out, number, seed, small, f"{series}-{number:06d}") for number in numbers]
    write_manifest(out / "manifest.jsonl", lines)
    return out / "manifest.jsonl"


def _is_ours(out: Path) -> bool:
    """Whether a folder's manifest lists clips as they are named here, and no other."""
    from videomaker.data.manifest import Clip, parse_manifest

    lines = [line for _, line in parse_manifest(out / "manifest.jsonl")]
    return all(isinstance(x, Clip) and _NAME.fullmatch(x.id) and x.video == f"videos/{x.id}.mp4" for x in lines)


def _write_clip(out: Path, number: int, seed: int, small: float, name: str):
    from videomaker.data.manifest import Clip as Line
    from videomaker.data.manifest import Reference

    rng = np.random.default_rng([seed, number])
    held_out = number % VAL_EVERY == VAL_EVERY - 1
    clip = random_clip(rng, split="test" if held_out else "train", small=small)
    portrait, mask = draw_portrait(clip.creature.view(mirrored=bool(rng.integers(2))), random_background(rng))
    video, image, stencil = f"videos/{name}.mp4", f"references/{name}.png", f"masks/{name}.png"
    _write_image(out / image, enlarge(portrait))
    _write_image(out / stencil, enlarge(255 * mask.astype(np.uint8)))
    if not (out / video).exists():
        with atomic_path(out / video) as path:
            media.write_mp4(path, enlarge(draw_clip(clip)[0]), fps=FPS, pix_fmt="yuv444p", crf=4)
    rows, columns = np.nonzero(enlarge(mask))
    return Line(
        id=name,
        video=video,
        captions=(clip.caption,),
        category="creature",
        subject_phrase=f"a {clip.size} creature",
        num_frames=NUM_FRAMES,
        fps=FPS,
        width=CANVAS * ENLARGEMENT,
        height=CANVAS * ENLARGEMENT,
        refs=(
            Reference(image=image, mask=stencil, box=(columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)),
        ),
        split="val" if held_out else "train",
    )


def _write_image(path: Path, pixels: np.ndarray) -> None:
    if not path.exists():
        with atomic_path(path) as temporary:
            Image.fromarray(pixels).save(temporary)
