"""DeepSpeed as the training uses it: its JSON, numerics, the learning rate."""

import json
from dataclasses import replace

import pytest
import torch
from videomaker.train.config import TrainConfig, ZeroConfig
from videomaker.train.engine import deepspeed_json, learning_rate, set_numerics
from videomaker.train.model import mixed_precision

from videomaker.errors import InputError


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_the_deepspeed_json_follows_the_configuration(precision):
    config = TrainConfig(precision=precision, zero=ZeroConfig(stage=3, offload="cpu"))
    derived = deepspeed_json(config, 2)
    assert derived["zero_optimization"]["stage"] == 3
    assert derived["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert derived["gradient_clipping"] == 1.0
    assert derived["gradient_accumulation_steps"] == 2
    assert [derived[kind]["enabled"] for kind in ("bf16", "fp16")] == [precision == "bf16", precision == "fp16"]


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


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"zero_optimization": {"overlap_com": True}}, r"\(overlap_com: Extra inputs are not permitted\): correct"),
        ({"zero_optimization": {"reduce_bucket_size": "big"}}, r"\(reduce_bucket_size: Input should be a valid"),
        ({"communication_data_type": "fp8"}, "Invalid communication_data_type"),
    ],
)
def test_what_deepspeed_does_not_take_is_one_line(trainer, tmp_path, own, message):
    (tmp_path / "own.json").write_text(json.dumps(own))
    with pytest.raises(InputError, match=message) as error:
        trainer(f"deepspeed={tmp_path}/own.json", "zero.stage=2")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_half_precision_without_a_gpu_is_refused():
    with pytest.raises(InputError, match="precision=fp16 needs a GPU"):
        set_numerics(TrainConfig(precision="fp16"), torch.device("cpu"))


@pytest.mark.parametrize("native", [True, False])
def test_autocast_uses_bf16_only_where_the_device_has_it(native, monkeypatch):
    monkeypatch.setattr("videomaker.train.model.computes_bf16", lambda device: native)
    with mixed_precision(True, torch.device("cpu")):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if native else torch.float32)


def test_the_learning_rate_warms_up_and_decays():
    settings = replace(TrainConfig().optimizer, learning_rate=1.0, warmup_steps=3, schedule="cosine")
    rates = [learning_rate(settings, step, 13) for step in range(13)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[8] == pytest.approx(0.5)
