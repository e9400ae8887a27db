"""Optimizers by name, rates by group, and one copy of the average in a checkpoint."""

import importlib.util

import pytest
import torch
from runs import curve, weights
from safetensors.torch import load_file
from videomaker.train.guards import StopRequest
from videomaker.train.overrides import load_config

from videomaker.errors import InputError

LIBRARIES = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}


@pytest.mark.parametrize(("name", "stage"), [("adafactor", 0), ("prodigy", 0), ("adamw8bit", 1)])
def test_an_optimizer_trains_and_resumes_to_the_bit(trainer, tmp_path, name, stage):
    if name in LIBRARIES and not importlib.util.find_spec(LIBRARIES[name]):
        pytest.skip(f"{LIBRARIES[name]} is not installed")
    options = [
        f"optimizer.name={name}",
        f"zero.stage={stage}",
        "optimizer.learning_rate=0.1",
        "steps=2",
        "checkpoint.every=1",
    ]
    made = trainer(*options)
    before = weights(made)
    assert made.run(StopRequest())
    assert any(not torch.equal(value, before[key]) for key, value in weights(made).items())
    if name == "adamw8bit" and stage:  # ZeRO's flat weights are large enough for 8 bits; a tiny tensor keeps 32
        states = made.engine.basic_optimizer.state.values()
        assert {state["state1"].dtype for state in states} == {torch.uint8}
    middle = tmp_path / "run" / "checkpoints" / "step-00000001"
    again = trainer(*options, f"checkpoint.resume={middle}", f"output={tmp_path}/again")
    assert again.run(StopRequest())
    assert curve(tmp_path / "again")[2] == curve(tmp_path / "run")[2]
    expected = weights(made)
    assert all(torch.equal(value, expected[key]) for key, value in weights(again).items())


def test_a_missing_library_is_named(trainer, monkeypatch):
    monkeypatch.setattr("videomaker.train.optimizer.find_spec", lambda name: None)
    for name, library in LIBRARIES.items():
        with pytest.raises(InputError, match=f"pip install {library}"):
            trainer(f"optimizer.name={name}")


@pytest.mark.parametrize("stage", [0, 1])
def test_groups_have_their_own_rates_and_the_average_is_saved_once(trainer, tmp_path, stage):
    """AdamW's first step moves every weight by its rate, whatever the gradient."""
    options = [f"zero.stage={stage}", "optimizer.weight_decay=0", "optimizer.eps=1e-30", "optimizer.ema_decay=0.5"]
    rates = ["optimizer.attn1_learning_rate=0.01", "optimizer.motion_learning_rate=0.002"]
    made = trainer(*options, *rates, "steps=2", "checkpoint.every=1", "optimizer.clip=0")
    before = weights(made)
    steps = {}
    made._validate = lambda _: steps.setdefault(made.step, weights(made))
    assert made.run(StopRequest())
    for name, value in steps[1].items():
        moved = (value - before[name]).abs().max()
        expected = 0.002 if "motion_modules" in name else 0.01 if ".attn1." in name else 0
        assert moved == pytest.approx(expected, rel=1e-2), name

    folder = tmp_path / "run" / "checkpoints" / "step-00000001"
    for file in (folder / "deepspeed").glob("*.pt"):
        assert "ema" not in _keys(file)
    again = trainer(*options, *rates, "steps=2", f"checkpoint.resume={folder}", f"output={tmp_path}/again",
                    "optimizer.clip=0")  # fmt: skip
    assert again.run(StopRequest())
    ends = [load_file(tmp_path / run / "checkpoints" / "step-00000002" / "ema.safetensors") for run in ("run", "again")]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    assert any(not torch.equal(value, weights(made)[name]) for name, value in ends[0].items())


def test_with_zero_3_the_average_comes_back_to_the_bit(trainer, tmp_path):
    options = ["zero.stage=3", "optimizer.ema_decay=0.5", "optimizer.motion_learning_rate=0.002", "steps=2"]
    assert trainer(*options, "checkpoint.every=1").run(StopRequest())
    folder = tmp_path / "run" / "checkpoints" / "step-00000001"
    assert trainer(*options, f"checkpoint.resume={folder}", f"output={tmp_path}/again").run(StopRequest())
    ends = [load_file(tmp_path / run / "checkpoints" / "step-00000002" / "ema.safetensors") for run in ("run", "again")]
    assert ends[0] and all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def _keys(file) -> set[str]:
    """All dictionary keys in a torch file."""
    found: set[str] = set()

    def visit(value) -> None:
        if isinstance(value, dict):
            found.update(map(str, value))
            for inner in value.values():
                visit(inner)
        elif isinstance(value, list | tuple):
            for inner in value:
                visit(inner)

    visit(torch.load(file, weights_only=False, map_location="cpu"))
    return found


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.name=adafactor", "zero.stage=1"], "needs zero.stage=0"),
        (["optimizer.name=adam"], "optimizer.name='adam'"),
        (["optimizer.name=prodigy", "zero.stage=1", "zero.offload=cpu"], "needs optimizer.name=adamw"),
        (["zero.offload_parameters=cpu"], "needs zero.stage=3"),
        (["optimizer.motion_learning_rate=-1"], "greater than or equal to 0"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(overrides, message):
    with pytest.raises(InputError, match=message):
        load_config("smoke", overrides)
