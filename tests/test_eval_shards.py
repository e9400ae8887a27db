"""A suite's work in shards: together they make and measure every video once, at any size of batch."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from videomaker.cli.evaluate import _finish
from videomaker.data.sharing import Shard
from videomaker.evaluation import run as running
from videomaker.evaluation.kit import Networks
from videomaker.evaluation.plan import Plan
from videomaker.evaluation.protocol import protocol_named
from videomaker.evaluation.report import PLAIN, build_report, collect
from videomaker.evaluation.suite import Prompt, Subject, Suite
from videomaker.jobs.prepare import Prepared
from videomaker.jobs.request import ModelSpec
from videomaker.jobs.resolved import ResolvedOutput, ResolvedRecipe, ResolvedSettings


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a shard of 2 subjects × 2 prompts × 2 seeds without a model or networks."""
    black = np.zeros((2, 8, 8, 3), np.uint8)
    monkeypatch.setattr(running, "render", lambda pipe, batch, settings: [black] * len(batch))
    for name in ("compile_for", "warn_of_cut_prompts"):
        monkeypatch.setattr(running, name, lambda *arguments: None)
    for name in "ab":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    prompts = (Prompt("a fox runs"), Prompt("a fox sleeps"))
    suite = Suite(tuple(Subject(name, tmp_path / f"{name}.png") for name in "ab"), {"a": prompts, "b": prompts}, (1, 2))
    settings = ResolvedSettings(
        steps=2, guidance=1.0, negative_prompt="", width=8, height=8, frames=2, fps=12, fit="pad"
    )
    recipe = ResolvedRecipe(
        ModelSpec(device="cpu", dtype="float32"), settings=settings, output=ResolvedOutput(upscale=1)
    )
    prepared = Prepared(None, recipe, {"unet": "0" * 64})

    def run_shard(out: Path, shard: Shard, batch_size: int) -> Plan:
        networks, protocol = Networks({}, {"clip": "none", "face": "none"}), protocol_named("paper")
        return running.run_suite(prepared, suite, out, networks, protocol, batch_size=batch_size, shard=shard)

    return run_shard


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("count", [2, 5])
def test_shards_measure_all_that_they_make(run, tmp_path, batch_size, count):
    for number in range(1, count + 1):
        plan = run(tmp_path / "out", Shard(number, count), batch_size)
    assert len(collect(plan, tmp_path / "out")) == len(collect(plan, tmp_path / "out" / PLAIN)) == 8


def test_motion_is_measured_at_the_rate_of_the_run(run, tmp_path):
    """12 frames a second, where the suite says 8: the files are PNG, which do not tell."""
    plan = run(tmp_path / "out", Shard(), 8)
    for folder in (tmp_path / "out", tmp_path / "out" / PLAIN):
        assert {measures["made_from"]["fps"] for measures in collect(plan, folder)} == {12}


def test_what_shards_have_left_is_said(run, tmp_path, capsys):
    run(tmp_path / "out", Shard(1, 2), 2)
    _finish(tmp_path / "out", 2, None, plain=True)
    assert (
        "4 of 8 videos, 4 of 8 of plain AnimateDiff are measured; when every shard is done" in capsys.readouterr().out
    )
    notes = build_report(tmp_path / "out")["notes"]
    assert notes[0] == "Incomplete: 4 of 8 videos are measured."
    assert notes[1] == "Incomplete: the row of plain AnimateDiff stands on 4 of 8 measurements."
    run(tmp_path / "out", Shard(2, 2), 2)
    assert not [note for note in build_report(tmp_path / "out")["notes"] if "Incomplete" in note]
