"""LoRA: what trains, the fused projections, exact resume, and an export that stock diffusers loads."""

import signal

import pytest
import torch
from diffusers import AnimateDiffPipeline
from runs import curve, weights
from tiny import tiny_pipeline
from videomaker.train.config import LoraSettings
from videomaker.train.export import export_run
from videomaker.train.guards import StopRequest
from videomaker.train.lora import add_lora, is_lora_name, target_modules
from videomaker.train.overrides import load_config
from videomaker.train.trainer import Trainer

from videomaker import VideoMakerPipeline
from videomaker.attention import fuse_pisa_projections
from videomaker.errors import InputError

# fp32 latents of about 1 after two guided steps, factors multiplied in another order; the adapters do 100 times more.
TOLERANCE = 1e-4
LORA = ("method.lora.rank=2", "method.lora.alpha=4", "optimizer.learning_rate=0.05", "optimizer.ema_decay=0.5")


def video(pipe, **changes):
    arguments = {
        "prompt_embeds": torch.ones(1, 7, 16), "negative_prompt_embeds": torch.zeros(1, 7, 16), "num_frames": 2,
        "height": 16, "width": 16, "num_inference_steps": 2, "guidance_scale": 2.0,
        "generator": torch.Generator().manual_seed(0), "output_type": "latent",
    }  # fmt: skip
    if isinstance(pipe, VideoMakerPipeline):
        arguments["reference_image_embeds"] = torch.ones(1, 4, 1, 8, 8)
    return pipe(**{**arguments, **changes}).frames


@pytest.fixture(scope="module")
def run(training_folder, process_group, tmp_path_factory):
    """A finished run of four steps: its trainer, the weights before, its folder."""
    folder = tmp_path_factory.mktemp("lora") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signal, "signal", lambda *_: None)
        device, environment = process_group
        for name, value in environment.items():
            patch.setenv(name, value)
        config = load_config(str(training_folder / "config.yaml"), [f"output={folder}", *LORA])
        made = Trainer(config, device)
        before = weights(made)
        assert made.run(StopRequest())
    return made, before, folder


def test_the_adapters_alone_are_trained(run):
    made, before, _ = run
    changed = {name for name, value in weights(made).items() if not torch.equal(value, before[name])}
    assert changed and all(map(is_lora_name, changed))
    assert any("motion_modules" in name for name in changed) and any(".attn1." in name for name in changed)
    assert changed == {name for name, p in made.learner.named_parameters() if p.requires_grad}


def test_a_resumed_run_ends_in_the_same_bits(run, trainer, tmp_path):
    made, _, folder = run
    middle = folder / "checkpoints" / "step-00000002"
    again = trainer(*LORA, f"checkpoint.resume={middle}", f"output={tmp_path}/again")
    assert again.run(StopRequest())
    assert curve(tmp_path / "again") == {step: loss for step, loss in curve(folder).items() if step > 2}
    expected = weights(made)
    assert all(torch.equal(value, expected[name]) for name, value in weights(again).items())


def test_the_export_is_what_diffusers_loads(run, training_folder):
    made, _, folder = run
    made.pipeline.unet.eval()
    trained = video(made.pipeline)
    path = export_run(folder, ema=False)
    plain = VideoMakerPipeline.from_pretrained(training_folder / "model")
    untouched = video(plain)
    plain.load_lora_weights(str(path), adapter_name="subject")
    torch.testing.assert_close(video(plain), trained, rtol=0, atol=TOLERANCE)
    assert (untouched - trained).abs().max() > 100 * TOLERANCE
    plain.set_adapters(["subject"], [0.0])
    torch.testing.assert_close(video(plain), untouched, rtol=0, atol=TOLERANCE)
    plain.set_adapters(["subject"], [1.0])
    plain.fuse_lora(lora_scale=1.0, adapter_names=["subject"])
    plain.unload_lora_weights()
    torch.testing.assert_close(video(plain), trained, rtol=0, atol=TOLERANCE)

    stock = AnimateDiffPipeline(**VideoMakerPipeline.from_pretrained(training_folder / "model").components)
    before = video(stock)
    stock.load_lora_weights(str(path))
    assert not torch.allclose(video(stock), before, rtol=0, atol=1e-4)


def test_a_merged_export_computes_the_same(run, training_folder, tmp_path):
    made, _, folder = run
    trained = video(made.pipeline)
    merged = VideoMakerPipeline.from_pretrained(training_folder / "model")
    path = export_run(folder, tmp_path / "merged.safetensors", ema=False, merge=True, dtype="fp32")
    assert merged.load_videomaker_weights(path).found == len(target_modules(merged.unet, ("attn1", "motion")))
    torch.testing.assert_close(video(merged), trained, rtol=0, atol=TOLERANCE)
    whole = VideoMakerPipeline.from_pretrained(
        export_run(folder, tmp_path / "whole", ema=False, whole=True, dtype="fp32")
    )
    torch.testing.assert_close(video(whole), trained, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_fused_projections_take_adapters_along(scale):
    pipe = tiny_pipeline()
    add_lora(pipe.unet, LoraSettings(rank=2), seed=0)
    for name, parameter in pipe.unet.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter)
    pipe.set_adapters(["default"], [scale])
    separate = video(pipe)
    fuse_pisa_projections(pipe.unet)
    torch.testing.assert_close(video(pipe), separate, rtol=1e-4, atol=1e-4)
    pipe.disable_lora()
    without = video(pipe)
    fuse_pisa_projections(pipe.unet, False)
    torch.testing.assert_close(video(pipe), without, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(without, separate, rtol=0, atol=1e-3)


def test_adapters_are_the_same_for_the_same_seed():
    states = []
    for seed in (0, 0, 1):
        unet = tiny_pipeline().unet
        add_lora(unet, LoraSettings(rank=2, targets=("attn1",)), seed=seed)
        states.append({name: p for name, p in unet.named_parameters() if ".lora_A." in name})
    assert all("motion_modules" not in name for name in states[0])
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not any(torch.equal(value, states[2][name]) for name, value in states[0].items())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.lora.rank=-1"], "rank=-1"),
        (["method.lora.rank=2", "method.train_all=true"], "train_all=false"),
        (["method.lora.rank=2", "method.lora.targets=[]"], "targets"),
        (["method.lora.rank=2", "method.lora.targets=[attn2]"], "lora.targets"),
    ],
)
def test_settings_that_cannot_be_are_refused(overrides, message):
    with pytest.raises(InputError, match=message):
        load_config("smoke", overrides)
