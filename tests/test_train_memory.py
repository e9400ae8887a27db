"""The count of memory: SD 1.5 at full size on the meta device, and a tiny run against what it really takes."""

import json
from dataclasses import replace

import pytest
import torch
from tiny import tiny_pipeline
from videomaker.train.config import TrainConfig
from videomaker.train.guards import StopRequest
from videomaker.train.main import main
from videomaker.train.memory import count, count_states
from videomaker.train.memory_report import choose_checkpointing
from videomaker.train.overrides import load_config

from videomaker.errors import InputError

GB = 10**9


def footprint(*overrides):
    return count(load_config("paper-human", ["model.path=sd15", *overrides]))


def test_recomputing_the_motion_modules_fits_sd15_into_7_gb():
    """16 frames of 512×512, one clip, bf16."""
    blocks, everything = (footprint(f"model.gradient_checkpointing={mode}") for mode in ("blocks", "all"))
    assert blocks.activation_peak_bytes > 16 * GB
    assert everything.activation_peak_bytes < 7 * GB
    assert everything.state_bytes == blocks.state_bytes
    # 1.28 G weights, VAE and text encoder in bf16; 466 M trained ones with a master and Adam's two states in fp32
    assert everything.trained_parameters == pytest.approx(466e6, rel=0.01)
    assert everything.state_bytes == pytest.approx(8.57 * GB, rel=0.01)


def test_a_small_card_recomputes_everything_by_itself(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path)
    config = load_config("smoke", ["data.height=16", "data.width=16", "data.num_frames=2", f"model.path={tmp_path}"])
    modes = {}
    for card in (None, 80 * GB, GB):
        chosen, why = choose_checkpointing(config, card)
        modes[card] = chosen.model.gradient_checkpointing
        assert ("recomputed too" in why) == (card == GB)
    assert modes == {None: "blocks", 80 * GB: "blocks", GB: "all"}
    fixed = replace(config, model=replace(config.model, gradient_checkpointing=False))
    assert choose_checkpointing(fixed, GB) == (fixed, "")


def states(*overrides, world_size=1):
    return count_states(load_config("paper-human", ["model.path=sd15", *overrides]), world_size)


def test_lora_keeps_the_states_small():
    whole, lora = states(), states("method.lora.rank=32")
    weights = whole.state_bytes - 12 * whole.trained_parameters
    assert lora.trained_parameters < whole.trained_parameters / 20
    assert lora.state_bytes == weights + 14 * lora.trained_parameters  # the adapters in bf16 are weights as well
    assert lora.checkpoint_bytes < whole.checkpoint_bytes / 20


def test_a_run_without_pisa_is_counted_too(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path)
    size = ["data.height=16", "data.width=16", "data.num_frames=2", f"model.path={tmp_path}"]
    with_pisa, without = (count(load_config("smoke", [*size, f"method.pisa={on}"])) for on in ("true", "false"))
    assert without.trained_parameters == with_pisa.trained_parameters > 0


def test_zero_and_offload_take_the_states_away():
    alone, shared, hosted = states(), states(world_size=4), states("zero.offload=cpu")
    assert alone.state_bytes - shared.state_bytes == 12 * alone.trained_parameters * 3 // 4
    assert alone.state_bytes - hosted.state_bytes == 12 * alone.trained_parameters


def test_dry_run_reports_before_anything_is_loaded(tmp_path, capsys):
    model = tmp_path / "model"
    tiny_pipeline().save_pretrained(model)
    for weights in model.rglob("*.safetensors"):
        weights.unlink()
    small = ["data.height=16", "data.width=16", "data.num_frames=2", f"model.path={model}"]
    assert main(["--config", "smoke", "--dry-run", "--memory", *small]) == 0
    lines = capsys.readouterr().out.splitlines()
    last = json.loads(lines[-1])
    assert min(last[f"{what}_bytes"] for what in ("activation_peak", "state", "checkpoint")) > 0
    assert last["card_gb"] == 8
    assert any("fits a card of 8 GB" in line and "gradient_checkpointing=all" in line for line in lines)


def test_what_cannot_be_counted_is_refused(capsys):
    assert main(["--config", "smoke", "--dry-run", "--memory", "model.path=absent"]) == 2
    assert "sd15 counts for the shapes" in capsys.readouterr().err
    assert main(["--config", "smoke", "--memory"]) == 2
    with pytest.raises(InputError, match="task=autoencoder"):
        count(TrainConfig(task="autoencoder"))


def test_a_checkpoint_is_about_as_large_as_counted(trainer, tmp_path):
    made = trainer("steps=1", "optimizer.ema_decay=0.9", "zero.stage=1")
    counted = count(made.config)
    assert counted.trained_parameters == sum(p.numel() for p in made.learner.parameters() if p.requires_grad)
    assert made.run(StopRequest())
    folder = next((tmp_path / "run" / "checkpoints").glob("step-*"))
    real = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert counted.checkpoint_bytes < real < 2 * counted.checkpoint_bytes  # a tiny model's names weigh like numbers


def test_the_peak_is_what_a_step_makes():
    """One layer on the counter: inputs, product and gradient are all there is."""
    from videomaker.pipeline.memory import PeakMemory

    layer = torch.nn.Linear(1000, 1000, bias=False, device="meta")
    with PeakMemory() as peak:
        layer(torch.empty(1000, 1000, device="meta")).sum().backward()
    assert 3 * 4e6 <= peak.peak <= 4 * 4e6
