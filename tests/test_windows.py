"""Long videos in overlapping windows that all see the reference."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from tiny import tiny_pipeline

from videomaker.compiled.processors import prepare_unet
from videomaker.compiled.step import denoising_step
from videomaker.errors import InputError
from videomaker.pipeline.windows import Windows, plan_windows

MODEL = {"limit": 32, "trained": 16, "size": None, "overlap": None}


def video(pipe, num_frames, **changes):
    arguments = {
        "prompt_embeds": torch.ones(1, 7, 16), "negative_prompt_embeds": torch.zeros(1, 7, 16), "height": 16,
        "width": 16, "num_inference_steps": 2, "guidance_scale": 2.0, "generator": torch.Generator().manual_seed(0),
        "output_type": "latent", "reference_image_embeds": torch.ones(1, 4, 1, 8, 8),
    }  # fmt: skip
    return pipe(num_frames=num_frames, **{**arguments, **changes}).frames


@pytest.mark.parametrize(("frames", "size", "overlap"), [(64, 16, 8), (17, 16, 4), (50, 16, 15), (33, 8, 0), (9, 4, 2)])
def test_windows_cover_every_frame_and_overlap_as_asked(frames, size, overlap):
    starts = Windows(frames, size, overlap).starts
    assert starts[0] == 0 and starts[-1] == frames - size
    gaps = [after - before for before, after in itertools.pairwise(starts)]
    assert all(1 <= gap <= size - overlap for gap in gaps)
    assert max(gaps) - min(gaps) <= 1


def test_what_fits_is_made_in_one():
    assert plan_windows(31, 1, **MODEL) is None
    assert plan_windows(32, 1, **MODEL) == Windows(32, 16, 8)
    assert plan_windows(29, 4, **MODEL) == Windows(29, 16, 8)
    assert plan_windows(24, 1, **{**MODEL, "size": 8, "overlap": 2}) == Windows(24, 8, 2)
    assert plan_windows(8, 1, **{**MODEL, "size": 8}) is None
    assert plan_windows(40, 20, **MODEL) == Windows(40, 12, 6)


@pytest.mark.parametrize(
    ("references", "changes", "message"),
    [
        (1, {"size": 32}, "window_frames is 32; with 1 references the 32 positions .* take 1 to 31 frames"),
        (1, {"size": 0}, "window_frames is 0"),
        (1, {"size": 8, "overlap": 8}, "window_overlap is 8; windows of 8 frames overlap by 0 to 7"),
        (1, {"overlap": -1}, "window_overlap is -1"),
        (32, {}, "32 references leave no frame"),
    ],
)
def test_windows_that_cannot_be_are_refused(references, changes, message):
    with pytest.raises(InputError, match=message):
        plan_windows(64, references, **{**MODEL, **changes})


def test_every_window_has_the_first_one_s_noise():
    noise = torch.randn(1, 2, 8, 1, 1, generator=torch.Generator().manual_seed(0))
    spread = Windows(30, 8, 4).spread_noise(noise)
    assert spread.shape[2] == 30 and torch.equal(spread[:, :, :8], noise)
    for start in range(0, 22, 4):  # whole pieces
        window = spread[:, :, start : start + 8]
        assert sorted(window[0, 0].flatten().tolist()) == sorted(noise[0, 0].flatten().tolist())
    assert not torch.equal(spread[:, :, 8:16], noise)


def test_fusing_what_agrees_changes_nothing():
    """A prediction that depends on each frame alone is the same in windows and at once."""
    latents = torch.randn(2, 3, 21, 2, 2)
    shapes = []

    def predict(index, window, text, guidance):
        shapes.append(window.shape[2])
        return window.sin() + index

    fused = Windows(21, 8, 3).fuse(predict)(5, latents, None, None)
    torch.testing.assert_close(fused, latents.sin() + 5)
    assert set(shapes) == {8}


@pytest.mark.parametrize("scheduler", ["ddim", "euler"])
def test_a_window_as_long_as_the_video_is_the_video(scheduler, monkeypatch):
    pipe = tiny_pipeline()
    if scheduler == "euler":
        pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    whole = video(pipe, 6)
    monkeypatch.setattr(type(pipe), "_windows", lambda *_: Windows(6, 6, 3))
    torch.testing.assert_close(video(pipe, 6), whole, rtol=1e-5, atol=1e-5)


def test_a_long_video_sees_its_reference_in_every_window():
    pipe = tiny_pipeline()
    long = video(pipe, 40)
    assert long.shape == (1, 4, 40, 8, 8) and long.isfinite().all()
    assert torch.equal(video(pipe, 40), long)
    other = video(pipe, 40, reference_image_embeds=-torch.ones(1, 4, 1, 8, 8))
    assert ((other - long).abs().amax(dim=(0, 1, 3, 4)) > 1e-3).all()


def test_given_latents_and_several_videos_take_windows_too():
    pipe = tiny_pipeline()
    latents = torch.randn(2, 4, 12, 8, 8, generator=torch.Generator().manual_seed(1))
    settings = {"window_frames": 4, "window_overlap": 2, "guidance_scale": 1.0}
    both = video(pipe, 12, latents=latents, num_videos_per_prompt=2, **settings)
    alone = video(pipe, 12, latents=latents[1:], **settings)
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheduler", ["ddim", "euler"])
def test_the_static_step_meets_one_shape(scheduler):
    pipe = tiny_pipeline()
    if scheduler == "euler":
        pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    expected = video(pipe, 10, window_frames=4)
    prepare_unet(pipe.unet)
    shapes = set()

    def step(latents, *arguments):
        shapes.add(latents.shape)
        return denoising_step(pipe.unet, latents, *arguments)

    pipe.compiled = SimpleNamespace(step=step)
    torch.testing.assert_close(video(pipe, 10, window_frames=4), expected, rtol=1e-4, atol=1e-4)
    assert shapes == {(1, 4, 4, 8, 8)}


def test_features_of_one_window_are_not_reused_in_another():
    pipe = tiny_pipeline()
    pipe.approximations = type(pipe.approximations)(reuse_every=2)
    with pytest.raises(InputError, match="reuse_every"):
        video(pipe, 40)
