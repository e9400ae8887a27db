"""Videos of any method, laid out as a suite wants them: found, and read as frames."""

from __future__ import annotations

from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
import numpy as np
from PIL import Image

from videomaker import media
from videomaker.errors import InputError, first_line

from .suite import Item, Suite

SUFFIXES = (".mp4", ".gif")
_SHOWN = 100  # milliseconds a frame; export_to_gif's default


def find_video(folder: Path, item: Item) -> Path | None:
    """`FOLDER/SUBJECT/PROMPT-SEED.mp4`, or `.gif`, or a folder of PNG frames; None when it is not there.

    Raises:
        InputError: there are several.
    """
    base = folder / item.subject.name / item.name
    found = [path for suffix in SUFFIXES if (path := base.with_name(base.name + suffix)).is_file()]
    found += [base] if base.is_dir() else []
    if len(found) > 1:
        raise InputError(f"{found[0]} and {found[1].name} are both there: leave one, it would be unclear which counts")
    return found[0] if found else None


def strangers(folder: Path, suite: Suite) -> list[Path]:
    """Videos in the subjects' folders, and folders, that the suite does not ask for."""
    asked = {(item.subject.name, item.name) for item in suite.items()}
    names = {subject.name for subject in suite.subjects}
    found = []
    for sub in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        if sub.name not in names:
            found.append(sub)
            continue
        videos = (path for path in sorted(sub.iterdir()) if path.suffix in SUFFIXES or path.is_dir())
        found += [v for v in videos if not v.name.startswith(".") and (sub.name, _stem(v)) not in asked]
    return found


def _stem(path: Path) -> str:
    return path.name if path.is_dir() else path.stem


def read_video(path: Path, *, fps: float = 8) -> np.ndarray:
    """The frames `[F, H, W, 3]` of uint8; `fps` is the rate where the file leaves it open.

    Raises:
        InputError: the file cannot be read, or holds no frame.
    """
    try:
        frames = media.read_frames(path, fps=fps)
    except Exception as error:  # each decoder complains of damage in its own way
        reason = first_line(error)
        raise InputError(f"video {path} cannot be read: {reason}") from error
    if not len(frames):
        raise InputError(f"video {path} holds no frame")
    return frames


def video_rate(path: Path, default: float) -> float:
    """Frames a second as the file says; `default` for a folder of frames and for a GIF that is one picture."""
    if path.is_dir():
        return default
    if path.suffix == ".gif":
        _, durations = media.read_gif(path)
        total = sum(durations)
        return 1000 * sum(media.gif_repeats(durations, default)) / total if total else default
    with av.open(str(path)) as container:
        rate: Fraction | None = container.streams.video[0].average_rate
    return float(rate) if rate else default


def through_gif(frames: np.ndarray) -> np.ndarray:
    """What is left of frames in a GIF of diffusers' `export_to_gif`: 256 colours fitted to each, not dithered."""
    file, (first, *others) = BytesIO(), map(Image.fromarray, frames)
    first.save(file, "GIF", save_all=True, append_images=others, optimize=False, duration=_SHOWN, loop=0)
    kept, durations = media.read_gif(file)
    return kept.repeat([duration // _SHOWN for duration in durations], axis=0)
