"""Whole runs on one process, from a tiny model and six clips to an export."""

import csv

import pytest
import torch
from diffusers import AutoencoderKL
from runs import curve, weights
from safetensors.torch import load_file
from videomaker.train.export import export_run
from videomaker.train.guards import StopRequest
from videomaker.train.main import main
from videomaker.train.overrides import save_config
from videomaker.train.trainer import TrainingFailed

from videomaker import VideoMakerPipeline
from videomaker.errors import InputError


def test_a_run_leaves_checkpoints_curves_samples_and_an_export(trainer, tmp_path):
    run = tmp_path / "run"
    made = trainer(
        "optimizer.ema_decay=0.5", "validation.every=2", "validation.clips=2", "sampling.every=4",
        "sampling.num_inference_steps=1",
    )  # fmt: skip
    before = weights(made)
    assert made.run(StopRequest())
    (run / "config.yaml").write_text(save_config(made.config))

    trained = {name for name, p in made.learner.named_parameters() if p.requires_grad}
    changed = {name for name, value in weights(made).items() if not torch.equal(value, before[name])}
    assert changed == trained  # frozen parameters never move, all others do
    assert sorted(path.name for path in (run / "checkpoints").glob("step-*")) == ["step-00000002", "step-00000004"]
    assert list(curve(run)) == [1, 2, 3, 4]
    with (run / "held_out.csv").open() as file:
        held_out = list(csv.DictReader(file))
    assert [row["step"] for row in held_out] == ["2", "4"]
    assert {"video_100", "reference_900", "reference_gain_500"} < set(held_out[0])
    assert {path.name for path in (run / "samples" / "step-00000004").iterdir()} >= {"00.mp4", "01.mp4", "sheet.png"}
    assert list((run / "tensorboard").glob("events*"))

    out = export_run(run, dtype="fp32", ema=False)
    fresh = VideoMakerPipeline.from_pretrained(made.config.model.path)
    assert fresh.load_videomaker_weights(out).found == len(trained)
    for name, value in weights(made).items():
        assert torch.equal(dict(fresh.unet.named_parameters())[name.removeprefix("unet.")], value)
    card = out.with_suffix(".md").read_text()
    assert "4 of 4" in card and "girl_weight: 0.1" in card and "commit" in card
    average = export_run(run, tmp_path / "ema.safetensors")
    assert fresh.load_videomaker_weights(average).found == len(trained)
    whole = dict(VideoMakerPipeline.from_pretrained(export_run(run, whole=True)).unet.named_parameters())
    assert all(torch.equal(whole[name], value.float()) for name, value in load_file(average).items())


@pytest.mark.parametrize("change", ["pisa", "reference_cross_attention"])
def test_a_pipeline_goes_out_with_the_attention_that_it_was_trained_with(trainer, tmp_path, change):
    made = trainer(f"method.{change}=false", "steps=2", "sampling.every=2", "sampling.num_inference_steps=1")
    assert made.run(StopRequest()) and (tmp_path / "run" / "samples" / "step-00000002" / "00.mp4").is_file()
    pipe = VideoMakerPipeline.from_pretrained(export_run(tmp_path / "run", whole=True))
    assert pipe.config.use_pisa == (change != "pisa")
    assert pipe.config.reference_cross_attention == (change != "reference_cross_attention")
    kinds = lambda unet: {name: type(kind) for name, kind in unet.attn_processors.items()}
    assert kinds(pipe.unet) == kinds(made.pipeline.unet)


def test_the_gradient_norm_is_the_same_with_and_without_zero(trainer, tmp_path):
    curves = []
    for stage in (0, 1):
        assert trainer("steps=2", f"zero.stage={stage}", f"output={tmp_path}/{stage}").run(StopRequest())
        curves.append(curve(tmp_path / str(stage), "gradient_norm"))
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


def test_steps_that_are_not_finite_are_skipped_and_then_end_the_run(trainer, monkeypatch):
    made = trainer("guards.max_skipped=2", "checkpoint.every=0")
    before = weights(made)
    prepare = made.inputs
    monkeypatch.setattr(made, "inputs", lambda *a: (prepare(*a)[0] * float("nan"), *prepare(*a)[1:]))
    with pytest.raises(TrainingFailed, match=r"2 steps in a row were skipped.*learning_rate"):
        made.run(StopRequest())
    assert all(torch.equal(value, before[name]) for name, value in weights(made).items())


def test_a_gradient_that_is_not_finite_is_skipped(trainer):
    made = trainer("steps=1", "optimizer.clip=0")
    before = weights(made)
    parameter = next(p for p in made.learner.parameters() if p.requires_grad)
    parameter.register_hook(lambda gradient: gradient * float("inf"))
    assert made.run(StopRequest())
    assert made.guard.skipped == 1
    assert all(torch.equal(value, before[name]) for name, value in weights(made).items())


def test_accumulated_micro_batches_equal_one_batch(trainer, tmp_path):
    options = ("steps=2", "batch_size=4", "checkpoint.every=0")
    for size in (4, 1):
        assert trainer(*options, f"micro_batch_size={size}", f"output={tmp_path}/{size}").run(StopRequest())
    # fp32: a mean over the batch taken at once or in four parts
    assert curve(tmp_path / "4") == pytest.approx(curve(tmp_path / "1"), rel=1e-5)


@pytest.mark.parametrize("task", ["text", "autoencoder"])
def test_the_stages_before_the_method_train_and_export(trainer, task, tmp_path):
    part = {"text": "unet", "autoencoder": "vae"}[task]
    made = trainer(f"task={task}", f"model.from_scratch=[{part}]", "steps=2", "checkpoint.every=0")
    assert made.run(StopRequest())
    (tmp_path / "run" / "config.yaml").write_text(save_config(made.config))
    out = export_run(tmp_path / "run")
    if task == "text":
        exported = VideoMakerPipeline.from_pretrained(out).unet
    else:
        exported = AutoencoderKL.from_pretrained(out)
        assert exported.config.scaling_factor == pytest.approx(1 / made.means["latent_std"])
    for name, value in weights(made).items():
        assert torch.equal(exported.state_dict()[name.removeprefix(f"{part}.")], value)
    with pytest.raises(InputError, match="name a folder"):
        export_run(tmp_path / "run", tmp_path / "file.safetensors")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.manifest=absent.jsonl"], "absent.jsonl"),
        (["model.path=absent"], "model.path='absent'"),
        (["checkpoint.resume=absent"], "checkpoint.resume=absent"),
        (["data.highlight=true"], "mask"),
        (["data.num_frames=30"], "num_frames"),
        (["deepspeed=absent.json"], "absent.json"),
        (["validation.every=1", "validation.split=absent"], "validation.every=0 sampling.every=0"),
        (["data.height=17"], "data.height=17 is no multiple of 2: give 16"),
        (["sampling.every=1", "sampling.prompts=[a]", "sampling.references=[absent.png]"], "absent.png"),
    ],
)
def test_bad_input_is_refused_before_the_first_step(
    training_folder, training_device, tmp_path, overrides, message, capsys
):
    arguments = ["--config", str(training_folder / "config.yaml"), f"output={tmp_path}/run", *overrides]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()
