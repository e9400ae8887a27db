"""Configurations of a training run: presets, overrides, what is refused."""

import pytest
from videomaker.train.config import TrainConfig
from videomaker.train.overrides import load_config, preset, save_config
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


def test_a_batch_that_does_not_fit_the_devices_is_refused():
    with pytest.raises(InputError, match="batch_size=4 does not fit 3 devices"):
        TrainConfig(batch_size=4).accumulation(3)
    assert TrainConfig(batch_size=8, micro_batch_size=2).accumulation(2) == 2
