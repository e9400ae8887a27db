"""Videos from elsewhere: GIFs are read as they are shown, whatever their writer left out."""

import numpy as np
import pytest
from diffusers.utils import export_to_gif
from PIL import Image
from tiny_metrics import blocks

from videomaker import media
from videomaker.evaluation.videos import read_video, through_gif, video_rate

POSES = {"moving": [0, 1, 2, 3, 4], "still": [0] * 5, "halting": [0, 0, 1, 1, 1, 2], "late": [0] * 14 + [1, 2]}


def frames_of(poses):
    return np.stack([blocks(seed) for seed in poses])


@pytest.mark.parametrize("poses", POSES.values(), ids=POSES)
@pytest.mark.parametrize("by", ["us", "diffusers"])
@pytest.mark.parametrize(("fps", "told"), [(8, 8), (12, 8), (12, 12)])
def test_a_gif_is_read_as_it_is_shown(tmp_path, poses, by, fps, told):
    """Pillow writes equal frames as one that lasts longer; only how many a still video has must be told."""
    frames, path = frames_of(poses), tmp_path / "video.gif"
    if by == "us":
        media.write_gif(path, frames, fps=fps)
    else:
        export_to_gif([Image.fromarray(frame) for frame in frames], str(path), fps=fps)
    with Image.open(path) as image:
        assert getattr(image, "n_frames", 1) == len(set(poses))
    read = read_video(path, fps=told)
    if len(set(poses)) > 1 or fps == told:
        assert read.shape == frames.shape
        assert np.abs(read.astype(int) - frames).mean() < 3
        assert video_rate(path, told) == pytest.approx(fps, rel=0.05)
    else:
        assert len(read) == 3 and (read == read[0]).all()  # 5 / 12 s at 8 frames a second


@pytest.mark.parametrize(
    ("durations", "fps", "repeats"),
    [
        ([250, 250, 500], 8, [1, 1, 2]),  # 4 a second, whatever the suite says
        ([250, 380], 8, [2, 3]),
        ([200, 300], 8, [2, 3]),
        ([10, 120, 130], 8, [1, 12, 13]),
        ([0, 0, 0], 8, [1, 1, 1]),
        ([0], 8, [1]),
    ],
)
def test_durations_tell_how_often_a_frame_is_shown(durations, fps, repeats):
    assert media.gif_repeats(durations, fps) == repeats


@pytest.mark.parametrize("poses", POSES.values(), ids=POSES)
def test_through_a_gif_as_the_authors_write_it(tmp_path, poses):
    """Of more colours than a palette holds; equal frames are merged in the file and still count."""
    noise = np.random.default_rng(0).integers(0, 40, (len(set(poses)), 32, 32, 3))
    frames = (frames_of(poses) * 0.8 + noise[poses]).astype(np.uint8)
    export_to_gif([Image.fromarray(frame) for frame in frames], str(tmp_path / "theirs.gif"))
    theirs, durations = media.read_gif(tmp_path / "theirs.gif")
    through = through_gif(frames)
    assert len(through) == len(frames) and sum(durations) == 100 * len(frames)
    assert (through == theirs[poses]).all() and (through != frames).any()
