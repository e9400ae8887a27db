"""Draws that pair: one seed gives the same frames' noise whatever the references; old records keep their own order."""

from pathlib import Path

import pytest
import torch
from diffusers import AnimateDiffPipeline
from PIL import Image
from tiny import tiny_pipeline
from typer.testing import CliRunner

from videomaker.cli import app
from videomaker.jobs import record
from videomaker.jobs.draws import first_version_latents
from videomaker.jobs.prepare import Prepared
from videomaker.jobs.render import render, replay
from videomaker.jobs.request import Job, ModelSpec, Output, Recipe, Settings

SIZE = {"num_frames": 3, "height": 32, "width": 32, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture
def pictures(tmp_path) -> list[Path]:
    paths = [tmp_path / f"{name}.png" for name in "ab"]
    for index, path in enumerate(paths):
        Image.effect_noise((32, 32), 40 + 40 * index).convert("RGB").save(path)
    return paths


def first_noise(pipe, call) -> torch.Tensor:
    """The frames' latents that the UNet sees first."""
    seen = []
    hook = pipe.unet.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        call()
    finally:
        hook.remove()
    return seen[0][:1, :, : SIZE["num_frames"]]


def test_a_seed_gives_the_same_frames_with_any_number_of_references(pipe, pictures):
    images = [Image.open(path) for path in pictures]
    noise = [
        first_noise(pipe, lambda n=n: pipe("a", images[:n], generator=torch.manual_seed(4), **SIZE)) for n in (1, 2)
    ]
    none = torch.zeros(1, 4, 0, 16, 16)
    noise.append(
        first_noise(pipe, lambda: pipe("a", reference_image_embeds=none, generator=torch.manual_seed(4), **SIZE))
    )
    plain = AnimateDiffPipeline(pipe.vae, pipe.text_encoder, pipe.tokenizer, tiny_pipeline().unet, None, pipe.scheduler)
    plain.set_progress_bar_config(disable=True)
    noise.append(first_noise(plain, lambda: plain("a", generator=torch.manual_seed(4), **SIZE)))
    assert all(torch.equal(noise[0], other) for other in noise[1:])
    assert not torch.equal(
        noise[0], first_noise(pipe, lambda: pipe("a", images[0], generator=torch.manual_seed(5), **SIZE))
    )


def test_without_references_it_is_plain_animatediff(pipe):
    """Also guided: what is left is AnimateDiff's own pipeline, number for number."""
    plain = AnimateDiffPipeline(pipe.vae, pipe.text_encoder, pipe.tokenizer, tiny_pipeline().unet, None, pipe.scheduler)
    plain.set_progress_bar_config(disable=True)
    options = {**SIZE, "guidance_scale": 3.0, "output_type": "latent"}
    expected = plain("a thing", generator=torch.manual_seed(1), **options).frames
    none = torch.zeros(1, 4, 0, 16, 16)
    found = pipe("a thing", reference_image_embeds=none, generator=torch.manual_seed(1), **options).frames
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


SETTINGS = Settings(steps=2, guidance=2.0, negative_prompt="", width=32, height=32, frames=3, fps=8, fit="stretch")


def test_records_of_the_first_version_are_replayed_in_their_order(pipe, pictures, tmp_path):
    """The old order, drawn here by hand: the reference's noise, then the frames', from one generator."""
    jobs = [Job((pictures[0],), "a", seed, tmp_path / f"{seed}") for seed in (3, 4)]
    old, references = [], []
    for job in jobs:
        generator = torch.Generator().manual_seed(job.seed)
        references.append(torch.randn(1, 4, 1, 16, 16, generator=generator))
        old.append(torch.randn(1, 4, 3, 16, 16, generator=generator))
    assert torch.equal(first_version_latents(pipe, jobs, SETTINGS), torch.cat(old))
    image = torch.stack([pipe.reference_processor.preprocess(Image.open(pictures[0]), 32, 32)[0]])
    posterior = pipe.vae.encode(image).latent_dist
    embeds = [(posterior.mean + posterior.std * r[:, :, 0]) * pipe.vae.config.scaling_factor for r in references]
    by_hand = pipe(
        ["a", "a"],
        reference_image_embeds=torch.stack(embeds, 0)[:, 0][:, :, None].detach(),
        latents=torch.cat(old),
        guidance_scale=2.0,
        output_type="np",
        **SIZE,
    ).frames
    frames = render(pipe, jobs, SETTINGS, latents=first_version_latents(pipe, jobs, SETTINGS))
    assert abs(frames - by_hand * 255).max() <= 1  # rounded to whole numbers
    assert (frames != render(pipe, jobs, SETTINGS)).any()


def test_a_replayed_record_stays_of_its_version(pipe, pictures, tmp_path):
    recipe = Recipe(ModelSpec(device="cpu", dtype="float32"), SETTINGS, Output("frames", 1))
    digests = record.component_digests(pipe)
    job = Job((pictures[0],), "a", 3, tmp_path / "again")
    old = {**record.make_record([job], 0, recipe, digests), "record_version": 1, "video_sha256": "x"}
    assert not replay(Prepared(pipe, recipe, digests), old, job.path)
    new = record.read_record(record.record_path(job.path))
    assert new["record_version"] == 1
    assert replay(Prepared(pipe, recipe, digests), new, job.path)


def test_results_of_an_earlier_version_are_not_taken_for_todays(pictures, tmp_path):
    model = tmp_path / "model"
    tiny_pipeline().save_pretrained(model)
    command = ["generate", "-r", pictures[0], "-p", "a", "--model", model, "--steps", "1", "--frames", "2"]
    command = [*map(str, command), "-o", str(tmp_path / "out")]
    assert CliRunner().invoke(app, command).exit_code == 0
    (file,) = (tmp_path / "out").glob("*.json")
    file.write_text(file.read_text().replace(f'"record_version": {record.RECORD_VERSION}', '"record_version": 1'))
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert "made with an earlier version, which drew its noise in another order" in result.stderr
