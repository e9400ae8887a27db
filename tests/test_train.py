"""Training on one process: configuration, the step's numbers, checkpoints, guards, a run from end to end."""

import csv
import errno
import json
import os
import signal
from dataclasses import replace

import pytest
import torch
import yaml
from clips import write_clips
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from tiny import tiny_pipeline
from videomaker.train import checkpoint as checkpoints
from videomaker.train.config import GuardConfig, MethodConfig, ModelConfig, TrainConfig, ZeroConfig
from videomaker.train.engine import deepspeed_json, learning_rate, set_numerics, start_distributed
from videomaker.train.export import export_run
from videomaker.train.guards import LossGuard, StopRequest
from videomaker.train.main import main
from videomaker.train.model import mixed_precision, prepare_denoiser
from videomaker.train.overrides import load_config, preset, save_config
from videomaker.train.presets import PRESETS
from videomaker.train.step import draw, girl_timestep, losses, min_snr_weight, target
from videomaker.train.trainer import Trainer, TrainingFailed

from videomaker import VideoMakerPipeline
from videomaker.errors import InputError

ALPHAS = torch.linspace(0.999, 0.005, 1000)


# --- configuration


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_being_saved(name, tmp_path):
    config = preset(name)
    (tmp_path / "config.yaml").write_text(save_config(config))
    assert load_config(str(tmp_path / "config.yaml")) == config


def test_presets_say_what_the_paper_and_its_ablations_say():
    paper = preset("paper-human")
    assert (paper.steps, paper.batch_size, paper.data.num_frames, paper.data.frame_stride) == (150_000, 4, 16, 8)
    assert (paper.optimizer.learning_rate, paper.optimizer.weight_decay) == (1e-5, 1e-2)
    assert preset("paper-object").steps == 100_000
    authors = preset("authors-human")
    assert (authors.precision, authors.zero.stage, authors.method.min_snr_gamma) == ("fp16", 1, 5.0)
    assert not preset("ablation-no-pisa").method.pisa
    assert preset("ablation-no-girl").method.girl_weight == 0
    assert not preset("ablation-no-reference-cross-attention").method.reference_cross_attention
    assert not preset("ablation-frozen-motion").method.update_motion
    assert not preset("ablation-no-highlight").data.highlight


def test_overrides_reach_nested_keys():
    config = load_config("smoke", ["optimizer.learning_rate=3e-4", "data.augmentation.rotation=0", "steps=7"])
    assert (config.optimizer.learning_rate, config.data.augmentation.rotation, config.steps) == (3e-4, 0, 7)
    assert load_config("sprites", ["data.cache="]).data.cache == ""


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.learnin_rate=1"], "did you mean 'optimizer.learning_rate'"),
        (["learning_rate=1"], "did you mean 'optimizer.learning_rate'"),
        (["steps=many"], "steps='many'"),
        (["zero.stage=4"], "zero.stage=4"),
        (["method.drop_text=0.9", "method.drop_image=0.9"], "add up to at most 1"),
        (["optimizer=3"], "optimizer is a group of keys"),
        (["steps"], "write key=value"),
        (["zero.offload=cpu"], "needs zero.stage"),
        (["zero.stage=3", "model.compile=true"], "needs zero.stage=0, 1 or 2"),
        (["steps="], "steps=''"),
        (["model.from_scratch=[unet3]"], "'unet3'"),
    ],
)
def test_a_wrong_override_is_named(overrides, message):
    with pytest.raises(InputError, match=message.replace("[", r"\[")):
        load_config("smoke", overrides)


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'paper-human'"):
        load_config("paper-humans")


def test_a_batch_that_does_not_fit_the_devices_is_refused():
    with pytest.raises(InputError, match="batch_size=4 does not fit 3 devices"):
        TrainConfig(batch_size=4).accumulation(3)
    assert TrainConfig(batch_size=8, micro_batch_size=2).accumulation(2) == 2


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_the_deepspeed_json_follows_the_configuration(precision):
    config = TrainConfig(precision=precision, zero=ZeroConfig(stage=3, offload="cpu"))
    derived = deepspeed_json(config, 2)
    assert derived["zero_optimization"]["stage"] == 3
    assert derived["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert derived["gradient_clipping"] == 1.0
    assert derived["gradient_accumulation_steps"] == 2
    assert [derived[kind]["enabled"] for kind in ("bf16", "fp16")] == [precision == "bf16", precision == "fp16"]


def test_half_precision_without_a_gpu_is_refused():
    with pytest.raises(InputError, match="precision=fp16 needs a GPU"):
        set_numerics(TrainConfig(precision="fp16"), torch.device("cpu"))


@pytest.mark.parametrize("native", [True, False])
def test_autocast_uses_bf16_only_where_the_device_has_it(native, monkeypatch):
    monkeypatch.setattr("videomaker.train.model.computes_bf16", lambda device: native)
    with mixed_precision(True, torch.device("cpu")):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if native else torch.float32)


def test_an_own_deepspeed_json_is_laid_over_and_checked(tmp_path):
    own = tmp_path / "own.json"
    config = TrainConfig(deepspeed=str(own))
    own.write_text(json.dumps({"train_batch_size": "auto", "zero_optimization": {"reduce_bucket_size": 1000}}))
    merged = deepspeed_json(config, 4)
    assert merged["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 1000}
    assert merged["train_batch_size"] == 4
    for content, message in (
        ('{"zero_optimization": {"stage": 1}}', r"zero_optimization.stage=1, the configuration 2"),
        ('{"optimizer": {"type": "Lamb"}}', r"has 'optimizer'"),
        ("{", r"own.json:1: "),
    ):
        own.write_text(content)
        with pytest.raises(InputError, match=message):
            deepspeed_json(config, 4)


# --- the step's numbers


def draws_of(method, *, clips=1000, device="cpu"):
    return draw(
        method, (4, 2, 2, 2), (4, 1, 2, 2),
        keys=[(0, i) for i in range(clips)], num_train_timesteps=1000, device=torch.device(device),
    )  # fmt: skip


def test_girl_keeps_the_reference_nearly_clean():
    timesteps = torch.arange(1000)
    assert girl_timestep(timesteps, 0.01).tolist() == [int(0.01 * t) for t in range(1000)]


def test_drop_rates_are_the_configured_ones():
    draws = draws_of(MethodConfig(drop_text=0.2, drop_image=0.3, drop_both=0.1))
    both = draws.drop_text & draws.drop_image
    # Binomial over 1000 clips: a standard deviation is at most 1.6 %, the band is four of them.
    assert abs(both.float().mean() - 0.1) < 0.064
    assert abs((draws.drop_text & ~both).float().mean() - 0.2) < 0.064
    assert abs((draws.drop_image & ~both).float().mean() - 0.3) < 0.064


def test_a_clips_draws_do_not_depend_on_the_batch_it_is_in():
    method = MethodConfig()
    together, alone = draws_of(method, clips=3), draws_of(method, clips=1)
    for name, value in vars(alone).items():
        assert torch.equal(value[0], getattr(together, name)[0])


def test_reference_noise_can_be_the_frames_mean():
    draws = draws_of(MethodConfig(reference_noise="mean"), clips=2)
    assert torch.equal(draws.reference_noise, draws.noise.mean(dim=2, keepdim=True))


def test_velocity_and_noise_are_the_same_prediction():
    clean, noise = torch.randn(2, 3, 4, 5, 5), torch.randn(2, 3, 4, 5, 5)
    timestep = torch.tensor([10, 900])
    signal = ALPHAS[timestep].view(-1, 1, 1, 1, 1)
    noised = signal.sqrt() * clean + (1 - signal).sqrt() * noise
    velocity = target("v_prediction", clean, noise, timestep, ALPHAS)
    torch.testing.assert_close(signal.sqrt() * velocity + (1 - signal).sqrt() * noised, noise)
    assert target("epsilon", clean, noise, timestep, ALPHAS) is noise


def test_min_snr_weights_agree_between_prediction_types():
    timestep = torch.arange(1000)
    epsilon = min_snr_weight("epsilon", timestep, 5.0, ALPHAS)
    velocity = min_snr_weight("v_prediction", timestep, 5.0, ALPHAS)
    snr = ALPHAS / (1 - ALPHAS)
    # An error e of the clean sample is an error e·sqrt(SNR) of the noise and e·sqrt(SNR + 1) of the velocity.
    torch.testing.assert_close(epsilon * snr, snr.clamp(max=5.0))
    torch.testing.assert_close(velocity * (snr + 1), snr.clamp(max=5.0))
    assert torch.equal(min_snr_weight("epsilon", timestep, 0.0, ALPHAS), torch.ones(1000))


def test_a_dropped_reference_has_no_loss_of_its_own():
    video = (torch.zeros(2, 1, 1, 1, 1), torch.ones(2, 1, 1, 1, 1))
    reference = (torch.zeros(2, 1, 1, 1, 1), torch.tensor([2.0, 4.0]).view(2, 1, 1, 1, 1))
    found = losses(
        MethodConfig(girl_weight=0.1), video=video, reference=reference,
        weight=torch.ones(2), drop_image=torch.tensor([False, True]),
    )  # fmt: skip
    assert found["video"] == 1
    assert found["reference"] == 2  # (2² + 0) / 2
    torch.testing.assert_close(found["loss"], torch.tensor(1.2))


ONE_LEVEL = {
    "block_out_channels": (32,),
    "down_block_types": ("CrossAttnDownBlockMotion",),
    "up_block_types": ("CrossAttnUpBlockMotion",),
}


def full_loss_gradients(backend, *, checkpointing, compiled=False, unet=None, dtype=torch.float64, **method):
    """Gradients of the trained parameters of one micro-batch of two clips, by name."""
    pipeline = tiny_pipeline(**unet or {}).to(dtype=dtype)
    config = TrainConfig(
        method=MethodConfig(drop_image=0.0, **method),
        model=ModelConfig(attention_backend=backend, gradient_checkpointing=checkpointing, compile=compiled),
    )
    learner = prepare_denoiser(pipeline, config)
    learner.alphas_cumprod = learner.alphas_cumprod.to(dtype)
    source = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 3, 8, 8, generator=source, dtype=dtype)
    reference = torch.randn(2, 4, 1, 8, 8, generator=source, dtype=dtype)
    text = torch.randn(2, 77, 16, generator=source, dtype=dtype)
    draws = draw(
        config.method, latents.shape[1:], reference.shape[1:],
        keys=[(0, 0), (0, 1)], num_train_timesteps=1000, device=torch.device("cpu"),
    )  # fmt: skip
    draws = replace(draws, noise=draws.noise.to(dtype), reference_noise=draws.reference_noise.to(dtype))
    learner(latents, reference, text, draws)["loss"].backward()
    return {name: p.grad for name, p in learner.unet.named_parameters() if p.requires_grad}


def relative_difference(a, b):
    return max(((a[name] - b[name]).norm() / b[name].norm()).item() for name in b)


def test_fused_and_checkpointed_gradients_equal_the_naive_ones():
    naive = full_loss_gradients("naive", checkpointing=False)
    assert all(gradient is not None and gradient.any() for gradient in naive.values())
    assert relative_difference(full_loss_gradients("sdpa", checkpointing=False), naive) < 1e-6
    assert relative_difference(full_loss_gradients("naive", checkpointing=True), naive) < 1e-6


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_gradients_equal_the_naive_ones(checkpointing):
    naive = full_loss_gradients("naive", checkpointing=False, unet=ONE_LEVEL)
    compiled = full_loss_gradients("sdpa", checkpointing=checkpointing, compiled=True, unet=ONE_LEVEL)
    assert compiled.keys() == naive.keys()
    assert relative_difference(compiled, naive) < 1e-6


def test_what_trains_is_what_the_method_says():
    names = lambda **method: set(full_loss_gradients("naive", checkpointing=False, **method))
    everything, attention = names(), names(update_motion=False)
    assert attention < everything
    assert all(".attn1." in name and "motion_modules" not in name for name in attention)
    assert all("motion_modules" in name for name in everything - attention)


def test_the_learning_rate_warms_up_and_decays():
    settings = replace(TrainConfig().optimizer, learning_rate=1.0, warmup_steps=3, schedule="cosine")
    rates = [learning_rate(settings, step, 13) for step in range(13)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[8] == pytest.approx(0.5)


class OneClip:
    """The method on one clip with every parameter trained, since a random base knows nothing worth freezing."""

    def __init__(self, girl_weight: float, steps: int):
        self.pipeline = tiny_pipeline(**ONE_LEVEL)
        self.pipeline.scheduler.register_to_config(prediction_type="v_prediction")
        self.method = MethodConfig(train_all=True, girl_weight=girl_weight, drop_image=0.0)
        model = ModelConfig(gradient_checkpointing=False, attention_backend="naive")
        self.learner = prepare_denoiser(self.pipeline, TrainConfig(method=self.method, model=model))
        source = torch.Generator().manual_seed(0)
        picture = torch.randn(1, 4, 2, 2, generator=source).repeat_interleave(4, 2).repeat_interleave(4, 3)
        self.clip = torch.stack([picture, picture.roll(2, dims=-1)], dim=2)  # [1, 4, 2, 8, 8]
        self.reference = picture.unsqueeze(2)
        self.text = torch.randn(1, 7, 16, generator=source)
        self.before = self.losses(0, batches=4)
        self._train(steps)
        self.after = self.losses(0, batches=4)

    def _train(self, steps: int) -> None:
        optimizer = torch.optim.AdamW(self.learner.unet.parameters(), fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps)
        for step in range(steps):
            optimizer.zero_grad()
            self._loss(step + 1)["loss"].backward()
            torch.nn.utils.clip_grad_norm_(self.learner.unet.parameters(), 1.0)
            optimizer.step()
            schedule.step()

    @torch.no_grad()
    def losses(self, first: int, *, batches: int) -> dict[str, float]:
        """Means over draws that training never sees."""
        found = [self._loss(-first - i - 1) for i in range(batches)]
        return {name: sum(part[name].item() for part in found) / batches for name in found[0]}

    def _loss(self, number: int) -> dict[str, torch.Tensor]:
        clips = 8
        draws = draw(
            self.method, self.clip.shape[1:], self.reference.shape[1:], keys=[(number, i) for i in range(clips)],
            num_train_timesteps=1000, device=torch.device("cpu"),
        )  # fmt: skip
        return self.learner(*(x.repeat(clips, *(1,) * (x.ndim - 1)) for x in self.inputs), draws)

    @property
    def inputs(self) -> tuple[torch.Tensor, ...]:
        return self.clip, self.reference, self.text


def test_the_tiny_model_overfits_one_clip_and_generates_it():
    fit = OneClip(girl_weight=1.0, steps=200)
    assert fit.after["video"] < fit.before["video"] / 10
    assert fit.after["reference"] < fit.before["reference"] / 2
    made = fit.pipeline(
        prompt_embeds=fit.text, reference_image_embeds=fit.reference, num_frames=2, height=16, width=16,
        num_inference_steps=20, guidance_scale=1.0, generator=torch.Generator().manual_seed(0), output_type="latent",
    ).frames  # fmt: skip
    assert torch.corrcoef(torch.stack([made.flatten(), fit.clip.flatten()]))[0, 1] > 0.9


def test_without_girl_the_reference_loss_does_not_fall():
    fit = OneClip(girl_weight=0.0, steps=60)
    assert fit.after["video"] < fit.before["video"] / 2  # it does learn
    assert fit.after["reference"] > 0.9 * fit.before["reference"]


# --- guards


def test_the_guard_objects_to_nan_and_spikes_only():
    guard = LossGuard(GuardConfig(spike_factor=3.0, spike_window=4, max_skipped=2))
    assert guard.objection(float("nan")) and guard.objection(float("inf"))
    assert not guard.objection(100.0)  # nothing known yet
    for loss in (1.0, 2.0, 1.0, 1.0):
        guard.accept(loss)
    assert not guard.objection(5.9)
    assert "over 3 times" in guard.objection(6.1)
    again = LossGuard(guard.settings)
    again.load_state_dict(json.loads(json.dumps(guard.state_dict())))
    assert again.state_dict() == guard.state_dict()
    guard.reject()
    assert not guard.exhausted
    guard.reject()
    assert guard.exhausted


# --- whole runs


@pytest.fixture(scope="module")
def device():
    return start_distributed()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model, six clips and the configuration that the runs below start from."""
    folder = tmp_path_factory.mktemp("train")
    tiny_pipeline().save_pretrained(folder / "model")
    config = {
        "preset": "smoke",
        "model": {"path": str(folder / "model"), "attention_backend": "naive"},
        "data": {
            "manifest": str(write_clips(folder / "clips")),
            "num_frames": 2,
            "height": 16,
            "width": 16,
            "highlight": False,
        },
        "optimizer": {"learning_rate": 1e-3},
        "checkpoint": {"every": 2, "keep_last": 2},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture
def trainer(folder, device, tmp_path, monkeypatch):
    """Makes trainers whose run goes to `tmp_path`; signals stay as pytest has them."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def make(*overrides):
        config = load_config(str(folder / "config.yaml"), [f"output={tmp_path}/run", *overrides])
        return Trainer(config, device)

    return make


def curve(run, column="loss"):
    with (run / "metrics.csv").open(newline="") as file:
        return {int(row["step"]): float(row[column]) for row in csv.DictReader(file)}


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.learner.named_parameters()}


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


def test_the_gradient_norm_is_the_same_with_and_without_zero(trainer, tmp_path):
    curves = []
    for stage in (0, 1):
        assert trainer("steps=2", f"zero.stage={stage}", f"output={tmp_path}/{stage}").run(StopRequest())
        curves.append(curve(tmp_path / str(stage), "gradient_norm"))
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


def test_a_full_disk_leaves_the_checkpoints_before_it(trainer, tmp_path, monkeypatch):
    whole = trainer(f"output={tmp_path}/whole")
    assert whole.run(StopRequest())

    made = trainer()
    save = checkpoints._HashingFile.write
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill(self, data):
        if made.step == 4:
            raise full
        return save(self, data)

    monkeypatch.setattr(checkpoints._HashingFile, "write", fill)
    with pytest.raises(checkpoints.CheckpointError, match="No space left"):
        made.run(StopRequest())
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "step-00000002"]

    monkeypatch.undo()
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    again = trainer()
    assert again.step == 2
    assert again.run(StopRequest())
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")


def test_a_damaged_checkpoint_is_passed_over(trainer, tmp_path):
    made = trainer("checkpoint.every=1", "checkpoint.keep_last=1", "checkpoint.keep_every=2", "steps=3")
    assert made.run(StopRequest())
    store = made.checkpoints
    assert store.steps() == [2, 3]  # the last one, and every second
    (tmp_path / "run/checkpoints/.step-00000009.tmp").mkdir()
    shard = next((tmp_path / "run/checkpoints/step-00000003/deepspeed").glob("*.pt"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    said = []
    assert store.newest_complete(said.append).step == 2
    assert "cut short" in said[0]
    assert "step-00000003 is damaged" in said[1] and "falling back" in said[1]


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
        (["sampling.every=1", "sampling.prompts=[a]", "sampling.references=[absent.png]"], "absent.png"),
    ],
)
def test_bad_input_is_refused_before_the_first_step(folder, device, tmp_path, overrides, message, capsys):
    arguments = ["--config", str(folder / "config.yaml"), f"output={tmp_path}/run", *overrides]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()
