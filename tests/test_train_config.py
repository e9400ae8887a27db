"""Configurations of a training run: presets, overrides, what is refused."""

import re

import pytest
from videomaker.train.checks import check_named, check_run
from videomaker.train.config import TrainConfig
from videomaker.train.main import main, parse_arguments
from videomaker.train.overrides import differences, flatten, load_config, preset, save_config
from videomaker.train.presets import PRESETS

from videomaker.errors import InputError


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


@pytest.mark.parametrize(("suffix", "end"), [("", "sprites-small"), (".yaml", ".yaml'")])
def test_an_error_is_a_line_whatever_its_name_is(suffix, end, capsys):
    assert main(["--config", "a" * 5000 + suffix, "--dry-run"]) == 2
    told = capsys.readouterr().err
    assert len(told) < 500 and told.startswith("error: ") and told.rstrip().endswith(end)


def test_a_batch_that_does_not_fit_the_devices_is_refused():
    with pytest.raises(InputError, match="batch_size=4 does not fit 3 devices"):
        TrainConfig(batch_size=4).accumulation(3)
    assert TrainConfig(batch_size=8, micro_batch_size=2).accumulation(2) == 2


NUMBERS = [key for key, value in flatten(TrainConfig()).items() if type(value) in (int, float)]


@pytest.mark.parametrize("value", [".nan", ".inf", "-1", "true", "many", "[1]"])
def test_no_number_takes_what_cannot_train(value):
    for key in NUMBERS:
        with pytest.raises(InputError, match=re.escape(key)) as error:
            load_config("smoke", [f"{key}={value}"])
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "override",
    [
        "optimizer.learning_rate=0", "optimizer.betas=[2,2]", "optimizer.betas=[0.9]", "optimizer.eps=0",
        "optimizer.ema_decay=1", "validation.clips=0", "validation.levels=[]", "validation.levels=[1000]",
        "validation.batch_size=0", "sampling.num_inference_steps=0", "sampling.fps=0", "guards.spike_factor=0.5",
        "guards.max_skipped=0", "guards.spike_window=0", "log.every=0", "checkpoint.keep_last=0", "steps=0",
        "batch_size=0", "steps=1e400", "seed=99999999999999999999", "data.augmentation.scale_min=2",
        "data.augmentation.rotation=181", "data.augmentation.flip_probability=1.1", "data.num_frames=0",
        "data.height=0", "method.girl_alpha=1.1", "method.drop_text=2", "output=",
    ],
)  # fmt: skip
def test_what_is_out_of_range_is_refused(override):
    with pytest.raises(InputError, match=re.escape(override.partition("=")[0].split(".")[-1])):
        load_config("smoke", [override])


def test_the_dry_run_tells_ranges(capsys):
    assert main(["--config", "smoke", "--dry-run", "optimizer.eps=.nan"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["--config", "smoke", "--dry-run", "steps=3"]) == 0
    assert "steps: 3" in capsys.readouterr().out


def test_options_and_overrides_go_in_any_order():
    options = parse_arguments(["--config", "smoke", "steps=3", "--dry-run", "seed=1"])
    assert options.dry_run and options.overrides == ["steps=3", "seed=1"]


@pytest.mark.parametrize(
    ("override", "message", "named"),
    [
        ("data.manifest=nope.jsonl", "data.manifest=nope.jsonl: there is none", True),
        ("model.path=nope", "model.path='nope' is no diffusers pipeline folder", True),
        ("deepspeed=nope.json", "deepspeed=nope.json does not exist", True),
        ("data.height=33", "data.height=33 is no multiple of 4: give 32", False),
        ("precision=fp16", "precision=fp16 needs a GPU", False),
        ("micro_batch_size=3", "batch_size=2 does not fit 1 devices", False),
    ],
)
def test_what_cannot_begin_is_refused_before_deepspeed_loads(tmp_path, capsys, monkeypatch, override, message, named):
    monkeypatch.setattr("videomaker.train.main.train", lambda config: pytest.fail("began"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (tmp_path / "vae").mkdir()
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "vae" / "config.json").write_text('{"block_out_channels": [8, 8, 8]}')
    (tmp_path / "clips.jsonl").touch()
    there = [f"data.manifest={tmp_path}/clips.jsonl", f"model.path={tmp_path}", "batch_size=2", override]
    assert main(["--config", "smoke", *there]) == 2
    assert message in capsys.readouterr().err
    assert main(["--config", "smoke", *there, "--dry-run"]) == (2 if named else 0)
    assert (message in capsys.readouterr().err) == named


def test_ranks_of_srun_count_before_deepspeed_loads(tmp_path, monkeypatch):
    """What a DeepSpeed JSON of one's own says of the accumulation is for all ranks of the run."""
    (tmp_path / "own.json").write_text('{"gradient_accumulation_steps": 1}')
    (tmp_path / "model_index.json").touch()
    options = ["batch_size=2", f"deepspeed={tmp_path}/own.json", f"data.manifest={tmp_path}", f"model.path={tmp_path}"]
    config = load_config("smoke", options)
    with pytest.raises(InputError, match="gradient_accumulation_steps=1, the configuration 2"):
        check_run(config)
    tasks = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1"}
    for name, value in tasks.items():
        monkeypatch.setenv(name, value)
    check_run(config)
    check_named(config, memory=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("steps: 3".encode("utf-16"), "is not UTF-8"),
        (b"preset: [1]", "preset=[1] is not a name"),
        (b"steps: " + b"[" * 5000 + b"]" * 5000, "nested too deeply"),
        (b"steps: 3\nsteps: 4", "'steps' is there twice"),
        (b"- 1", "is not a mapping"),
        (b"", "is not a mapping"),
        (b"steps: 2024-13-45", "cannot be read"),
        (b"? [1]\n: 2", "unhashable key"),
        (b"steps: \x00", "special characters"),
    ],
)
def test_an_odd_yaml_is_one_line(tmp_path, content, message):
    (tmp_path / "run.yaml").write_bytes(content)
    with pytest.raises(InputError, match=re.escape(message)) as error:
        load_config(str(tmp_path / "run.yaml"))
    assert "\n" not in str(error.value) and "run.yaml" in str(error.value)


def test_what_differs_from_the_preset_is_said_first():
    config = load_config("smoke", ["steps=7", "data.highlight=false", "validation.levels=[1,2]"])
    assert set(differences(config).split()) == {"steps=7", "data.highlight=false", "validation.levels=[1,2]"}
    assert differences(preset("smoke")) == ""
    assert load_config(config.preset, differences(config).split()) == config
