"""Going on with a run: what may change is said and kept, what may not is refused in one line."""

import json
import shutil

import pytest
from runs import curve
from tiny import tiny_pipeline
from videomaker.train.guards import StopRequest
from videomaker.train.monitor import Table
from videomaker.train.overrides import load_config
from videomaker.train.plots import read_curves

from videomaker.errors import InputError


def test_other_settings_are_said_and_every_configuration_is_kept(trainer, tmp_path, capsys):
    run = tmp_path / "run"
    assert trainer("steps=2").run(StopRequest())
    capsys.readouterr()
    assert trainer("steps=4", "optimizer.learning_rate=1e-4", "method.girl_weight=0.2").run(StopRequest())
    said = capsys.readouterr().out
    assert "going on from step 2 with other settings than before" in said
    for change in ("steps 2 → 4", "optimizer.learning_rate 0.001 → 0.0001", "method.girl_weight 0.1 → 0.2"):
        assert change in said
    assert trainer("steps=4", "optimizer.learning_rate=1e-4", "method.girl_weight=0.2").step == 4  # nothing new
    assert sorted(path.name for path in (run / "configs").iterdir()) == ["step-00000000.yaml", "step-00000002.yaml"]
    assert load_config(str(run / "configs" / "step-00000000.yaml")).optimizer.learning_rate == 1e-3
    assert (run / "configs" / "step-00000002.yaml").read_text() == (run / "config.yaml").read_text()
    starts = [json.loads(line) for line in (run / "starts.jsonl").read_text().splitlines()]
    assert [(start["step"], start["config"]) for start in starts] == [
        (0, "configs/step-00000000.yaml"), (2, "configs/step-00000002.yaml"),
    ]  # fmt: skip
    assert starts[0]["versions"]["torch"] and starts[0]["commit"] and starts[0]["ranks"] == 1


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_other_settings_of_the_optimizer_count(trainer, stage):
    """A checkpoint holds those that it was written with beside the moments."""
    fixed = [f"zero.stage={stage}", "optimizer.learning_rate=1e-3"]
    assert trainer(*fixed, "optimizer.attn1_learning_rate=5e-4", "steps=2").run(StopRequest())
    others = ["optimizer.attn1_learning_rate=2e-3", "optimizer.weight_decay=0.5", "optimizer.betas=[0.5,0.9]"]
    again = trainer(*fixed, *others, "optimizer.eps=1e-4", "steps=3")
    assert again.run(StopRequest())
    groups = again.engine.basic_optimizer.param_groups
    assert {(group["weight_decay"], group["betas"], group["eps"]) for group in groups} == {(0.5, (0.5, 0.9), 1e-4)}
    assert sorted(group["lr"] for group in groups) == [1e-3, 2e-3]


@pytest.mark.parametrize("stage", [0, 2])
def test_rates_that_divide_the_weights_otherwise_are_one_line(trainer, stage):
    assert trainer(f"zero.stage={stage}", "steps=2").run(StopRequest())
    for change in ("optimizer.attn1_learning_rate=2e-3", "optimizer.motion_learning_rate=2e-3"):
        with pytest.raises(InputError, match=r"was written with optimizer.learning_rate=0.001 .* give rates") as error:
            trainer(f"zero.stage={stage}", "steps=4", change)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("method.update_motion=false", "method.update_motion was true .* is false now, which cannot change"),
        ("precision=bf16", "precision was fp32 .* is bf16 now"),
        ("zero.stage=1", "written with zero.stage=0, this run has 1"),
        ("seed=5", "seed was 0 .* is 5 now"),
        ("task=text", "task was subject"),
    ],
)
def test_what_cannot_change_is_one_line(trainer, tmp_path, change, message):
    run = tmp_path / "run"
    assert trainer("steps=2").run(StopRequest())
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=message) as error:
        trainer("steps=4", change)
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_run_at_its_last_step_stays_as_it_is(trainer, tmp_path, capsys):
    run = tmp_path / "run"
    assert trainer("steps=2").run(StopRequest())
    kept = {path: path.read_bytes() for path in run.rglob("*") if path.suffix in (".yaml", ".json", ".jsonl", ".csv")}
    capsys.readouterr()
    assert trainer("steps=2", "method.girl_weight=0.2").run(StopRequest())
    said = capsys.readouterr().out
    assert "already at step 2 of 2: nothing to train" in said
    assert "these other settings train nothing: method.girl_weight 0.1 → 0.2" in said
    elsewhere = (f"checkpoint.resume={run}/checkpoints/step-00000002", f"output={tmp_path}/more")
    for options in (["steps=1"], ["steps=2", *elsewhere]):
        with pytest.raises(InputError, match=r"at step 2, so steps=\d leaves nothing to train: give more steps"):
            trainer(*options)
    assert {path: path.read_bytes() for path in kept} == kept
    assert not (tmp_path / "more").exists()


def test_another_base_model_is_said_or_refused(trainer, training_folder, tmp_path, capsys):
    assert trainer("steps=2").run(StopRequest())
    other = tiny_pipeline(seed=1)
    other.save_pretrained(tmp_path / "other")
    trainer("steps=4", f"model.path={tmp_path}/other")._release()
    assert "with another base model" in capsys.readouterr().out
    tiny_pipeline(block_out_channels=(16, 64)).save_pretrained(tmp_path / "wider")
    with pytest.raises(InputError, match=r"trained \d+ tensors and this model trains \d+, first other"):
        trainer("steps=4", f"model.path={tmp_path}/wider")


def test_two_runs_are_not_mixed_in_one_folder(trainer, tmp_path):
    assert trainer("checkpoint.every=1", "steps=3").run(StopRequest())
    checkpoints = tmp_path / "run" / "checkpoints"
    with pytest.raises(InputError, match=r"is of step 2 and .* has checkpoints up to step 3"):
        trainer(f"checkpoint.resume={checkpoints}/step-00000002")
    elsewhere = trainer(f"checkpoint.resume={checkpoints}/step-00000002", f"output={tmp_path}/more", "steps=3")
    assert elsewhere.step == 2 and elsewhere.run(StopRequest())
    assert curve(tmp_path / "more") == {3: curve(tmp_path / "run")[3]}


def test_a_second_run_in_the_same_folder_is_refused(trainer, tmp_path):
    first = trainer()
    with pytest.raises(InputError, match="is being written by process"):
        trainer()
    assert first.run(StopRequest())
    assert trainer().step == 4


def test_a_curve_outlives_its_checkpoints(trainer, tmp_path):
    run = tmp_path / "run"
    assert trainer("steps=2").run(StopRequest())
    old = (run / "metrics.csv").read_bytes()
    shutil.rmtree(run / "checkpoints")
    assert trainer("steps=2").run(StopRequest())
    assert (run / "metrics.1.csv").read_bytes() == old and list(curve(run)) == [1, 2]


def test_a_row_that_a_kill_cut_off_is_dropped(tmp_path):
    for torn in ("3,0.", "3", "3,0.5,1,9\n", "x,1,2\n"):
        (tmp_path / "metrics.csv").write_text("step,loss,rate\n1,0.5,1\n2,0.4,1\n" + torn)
        Table(tmp_path / "metrics.csv", start=3)
        assert (tmp_path / "metrics.csv").read_text().split() == ["step,loss,rate", "1,0.5,1", "2,0.4,1"]


def test_other_settings_bring_other_columns(tmp_path):
    path = tmp_path / "held_out.csv"
    path.write_text("step,video_100,video_500\n2,0.5,0.4\n4,0.3,0.2\n")
    table = Table(path, start=2)
    table.append({"step": 4, "video_300": 0.7, "video_500": 0.1})
    table.append({"step": 6, "video_300": 0.6, "video_500": 0.05})
    assert path.read_text().split() == ["step,video_100,video_500,video_300", "2,0.5,0.4,", "4,,0.1,0.7", "6,,0.05,0.6"]
    assert read_curves(path) == {
        "video_100": ([2], [0.5]), "video_500": ([2, 4, 6], [0.4, 0.1, 0.05]), "video_300": ([4, 6], [0.7, 0.6]),
    }  # fmt: skip
    Table(path, start=4).append({"step": 6, "video_500": 0.01})  # back to fewer
    assert path.read_text().split()[1:] == ["2,0.5,0.4,", "4,,0.1,0.7", "6,,0.01,"]


def test_a_plot_that_fails_hides_no_error_and_keeps_no_lock(trainer, tmp_path, monkeypatch, capsys):
    made = trainer("checkpoint.every=0")
    (tmp_path / "run" / "held_out.csv").write_text("step,video_100\n0,much\n")
    monkeypatch.setattr(made, "_report", lambda *_: 1 / 0)
    made.step = 1  # or the file of others would be put aside
    with pytest.raises(ZeroDivisionError):
        made.run(StopRequest())
    assert not made.folder.joinpath(".lock").exists()


def test_a_resume_with_other_levels_goes_on(trainer, tmp_path):
    options = ["validation.every=2", "validation.clips=2", "checkpoint.every=2"]
    assert trainer(*options, "steps=2", "validation.levels=[100,500]").run(StopRequest())
    assert trainer(*options, "steps=4", "validation.levels=[300,500]", "validation.batch_size=2").run(StopRequest())
    curves = read_curves(tmp_path / "run" / "held_out.csv")
    assert [curves[f"video_{level}"][0] for level in (100, 300, 500)] == [[2], [4], [2, 4]]
    assert (tmp_path / "run" / "plots.png").is_file()
