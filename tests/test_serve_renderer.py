"""The real renderer: the same request gives the same bits whatever shares its pass, and its record makes it again."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from serving import PICTURE

from videomaker import media
from videomaker.files import sha256
from videomaker.jobs import render as jobs_render
from videomaker.jobs.record import record_path
from videomaker.serve.config import load_config
from videomaker.serve.model_renderer import ModelRenderer
from videomaker.serve.renderer import Failed, OutOfMemory, RenderJob
from videomaker.serve.results import make_files


@pytest.fixture(scope="module")
def renderer(tmp_path_factory) -> ModelRenderer:
    renderer = ModelRenderer(load_config(data=tmp_path_factory.mktemp("data"), batch=3), "cpu")
    renderer.warm_up(())
    return renderer


def job(prompt: str, seed: int, guidance: float, picture=PICTURE) -> RenderJob:
    request = {
        "prompt": prompt, "negative_prompt": "", "model": "m", "num_frames": 8, "height": 32, "width": 32, "fps": 8.0,
        "num_inference_steps": 2, "guidance_scale": guidance, "fit": "stretch", "seed": seed, "consent": None,
        "references": [{"sha256": sha256(picture)}],
    }  # fmt: skip
    image = media.fit_reference(media.load_reference(picture), 32, 32, "stretch")
    return RenderJob(f"video_{seed}", request, (image,))


@pytest.fixture(scope="module")
def jobs() -> list[RenderJob]:
    others = [PICTURE.with_name(name) for name in ("slate.png", "violet.png")]
    return [
        job("a big creature hopping to the left over a green meadow", 7, 2.0),
        job("a small creature spinning over a dark sea", 8, 5.0, others[0]),
        job("a creature", 9, 1.5, others[1]),
    ]


def frames(renderer, jobs, size=3):
    return [made.frames for made in renderer.render(jobs, size, lambda: None)]


def test_the_same_request_has_the_same_bits_whatever_the_load(renderer, jobs):
    one, two, three = jobs
    alone = frames(renderer, [one])[0]
    assert alone.std() > 0
    places = [([one, two], 0), ([two, one], 1), ([three, two, one], 2), ([one, one, one], 1)]
    for company, place in places:
        np.testing.assert_array_equal(frames(renderer, company)[place], alone)
    assert not np.array_equal(frames(renderer, [two])[0], alone)


def test_a_served_record_makes_the_same_file_again(renderer, jobs, tmp_path):
    made = renderer.render(jobs, 3, lambda: None)[1]
    files = make_files(made, jobs[1].request, load_config(data=tmp_path))
    record = json.loads(files["record"][2])
    assert all(text not in json.dumps(record) for text in (jobs[0].request["prompt"], str(tmp_path)))
    again = tmp_path / "again.mp4"
    picture = PICTURE.with_name("slate.png")
    threads = torch.get_num_threads()
    prepared = dataclasses.replace(renderer._prepared, recipe=jobs_render.record.recorded_recipe(record))
    assert jobs_render.replay(prepared, record, again, references=[picture])
    assert torch.get_num_threads() == threads
    assert again.read_bytes() == files["video"][2]
    assert record_path(again).is_file()


def test_numbers_that_overflow_fail_their_own_video(renderer, jobs, monkeypatch):
    sample = jobs_render.sample_videos

    def overflowing(*args):
        video = sample(*args)
        video[1] = float("nan")
        return video

    monkeypatch.setattr(jobs_render, "sample_videos", overflowing)
    outcomes = renderer.render(jobs, 3, lambda: None)
    assert [isinstance(outcome, Failed) for outcome in outcomes] == [False, True, False]
    assert outcomes[1].code == "overflow"


def test_memory_that_does_not_suffice_is_told(renderer, jobs, monkeypatch):
    def full(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(renderer.pipe, "encode_text", full)
    with pytest.raises(OutOfMemory, match="3 x 8 frames of 32x32"):
        renderer.render(jobs, 3, lambda: None)


def test_what_a_step_raises_ends_the_pass(renderer, jobs):
    class Enough(Exception):
        pass

    steps = []

    def on_step():
        steps.append(1)
        raise Enough

    with pytest.raises(Enough):
        renderer.render(jobs, 3, on_step)
    assert len(steps) == 1


def test_thumbnails_and_sheets_show_every_frame(tmp_path):
    from videomaker.serve.renderer import Made

    made = Made(np.arange(8, dtype=np.uint8)[:, None, None, None] * np.full((1, 32, 48, 3), 20, np.uint8), 8, {})
    request = {"fps": 8.0, "consent": None, "references": []}
    files = make_files(made, request, load_config(data=tmp_path))
    import io

    sheet = np.asarray(Image.open(io.BytesIO(files["spritesheet"][2])))
    assert sheet.shape == (2 * 96, 4 * 144, 3)
    brightness = [sheet[96 * (i // 4) + 48, 144 * (i % 4) + 72, 0] for i in range(8)]
    assert all(abs(int(value) - 20 * i) <= 3 for i, value in enumerate(brightness))
    assert Image.open(io.BytesIO(files["thumbnail"][2])).size == (240, 160)
