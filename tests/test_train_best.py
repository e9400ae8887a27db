"""Seeing a run: losses of the average, the best weights, plots, a trace, and what goes to the hub."""

import json

import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from runs import weights
from safetensors import safe_open
from safetensors.torch import load_file
from videomaker.train.average import average_in_place
from videomaker.train.best import Best, read_best
from videomaker.train.export import export_run
from videomaker.train.guards import StopRequest
from videomaker.train.overrides import held_out_losses, load_config, save_config
from videomaker.train.push import hub_folder, push

from videomaker.errors import InputError

WATCHED = (
    "optimizer.ema_decay=0.5", "validation.every=1", "validation.clips=2", "sampling.every=4", "log.profile=1",
    "sampling.num_inference_steps=1", "checkpoint.best=video_500", "method.lora.rank=2",
)  # fmt: skip


@pytest.fixture
def watched(trainer, tmp_path):
    made = trainer(*WATCHED)
    assert made.run(StopRequest())
    (tmp_path / "run" / "config.yaml").write_text(save_config(made.config))
    return made, tmp_path / "run"


def test_what_a_watched_run_leaves(watched, tmp_path):
    made, run = watched
    with Image.open(run / "plots.png") as picture:
        assert min(picture.size) > 300
    trace = json.loads((run / "profile" / "trace.json").read_text())
    assert any("backward" in event.get("name", "").lower() for event in trace["traceEvents"])

    rows = [line.split(",") for line in (run / "held_out.csv").read_text().splitlines()]
    values = {int(row[0]): float(row[rows[0].index("video_500")]) for row in rows[1:]}
    best = read_best(run)
    losses = best.pop("losses")
    assert losses["video_500"] == min(values.values()) and losses.keys() == {*rows[0]} - {"step"}
    assert best == {
        "step": min(values, key=values.get), "measure": "video_500", "value": min(values.values()), "kind": "ema",
    }  # fmt: skip
    exported = export_run(run, tmp_path / "lora.safetensors", best=True)
    kept = load_file(run / "best" / "weights.safetensors")
    assert torch.equal(next(iter(kept.values())), load_file(exported)[next(iter(kept)).replace(".default", "")])

    folder = hub_folder(run, exported, tmp_path / "hub")
    assert {path.name for path in folder.iterdir()} == {"pytorch_lora_weights.safetensors", "README.md", "samples"}
    card = (folder / "README.md").read_text()
    assert "## Samples of step-00000004" in card and "(samples/sheet.png)" in card
    assert (folder / "samples" / "sheet.png").is_file()
    with pytest.raises(InputError, match="OWNER/NAME"):
        push(folder, "name")
    with pytest.raises(InputError, match=r"owner/name: .*is ready in"):
        push(folder, "owner/name")  # the tests are offline

    before = weights(made)
    judged = made.validation.losses(made.engine.module)
    with average_in_place(made.engine) as there:
        assert there
        average = load_file(run / "checkpoints" / "step-00000004" / "ema.safetensors")
        assert all(torch.equal(weights(made)[name], value) for name, value in average.items())
        assert made.validation.losses(made.engine.module)["video_500"] == pytest.approx(values[4], rel=1e-6)
    assert judged["video_500"] != values[4]
    assert all(torch.equal(value, before[name]) for name, value in weights(made).items())


def lower_later(made, levels):
    """Lets the held-out losses of a trainer be `levels`, one after the other."""
    values = iter(levels)
    losses = made.validation.losses
    made.validation.losses = lambda module: (
        {name: next(values) for name in [made.best.measure]}
        | {name: value for name, value in losses(module).items() if name != made.best.measure}
    )


def test_the_card_and_the_header_of_the_best_are_the_best_ones(trainer, tmp_path):
    run = tmp_path / "run"
    made = trainer("validation.every=1", "validation.clips=2", "checkpoint.best=video_500", "optimizer.ema_decay=0.5",
                   "validation.weights=raw", "steps=3", "checkpoint.every=0")  # fmt: skip
    lower_later(made, [3, 1, 2])
    assert made.run(StopRequest())
    (run / "config.yaml").write_text(save_config(made.config))
    out = export_run(run, best=True)
    card = out.with_suffix(".md").read_text()
    assert "| Steps | 2 of 3," in card and "| Best by | lowest held-out `video_500`: 1 |" in card
    assert "moving average" not in card and "Last losses" not in card
    with safe_open(out, framework="pt") as file:
        about = file.metadata()
    assert {name: about[name] for name in ("steps", "measure", "value", "kind")} == {
        "steps": "2", "measure": "video_500", "value": "1", "kind": "weights",
    }  # fmt: skip
    with pytest.raises(InputError, match=r"kept the best raw weights.* leave out --ema"):
        export_run(run, best=True, ema=True)
    newest = export_run(run).with_suffix(".md").read_text()
    assert "| Steps | 3 of 3," in newest and "Last losses" in newest and "moving average" in newest


def test_the_best_vae_has_the_scale_of_its_own_latents(trainer, tmp_path):
    run = tmp_path / "run"
    made = trainer("task=autoencoder", "model.from_scratch=[vae]", "validation.every=1", "validation.clips=2",
                   "checkpoint.best=reconstruction", "steps=2", "checkpoint.every=0")  # fmt: skip
    lower_later(made, [1, 2])
    assert made.run(StopRequest())
    (run / "config.yaml").write_text(save_config(made.config))
    scale = AutoencoderKL.from_pretrained(export_run(run, best=True)).config.scaling_factor
    assert scale == pytest.approx(1 / read_best(run)["losses"]["latent_std"])
    assert scale != pytest.approx(1 / made.means["latent_std"])


def test_what_is_kept_counts_for_the_same_measure_and_an_earlier_step(tmp_path):
    (tmp_path / "best").mkdir()
    about = {"step": 4, "measure": "video_500", "value": 0.5, "kind": "ema"}
    (tmp_path / "best" / "best.json").write_text(json.dumps(about))
    assert Best(tmp_path, "video_500", "ema", start=4).lowest == 0.5
    for measure, kind, start in (("video_100", "ema", 4), ("video_500", "weights", 4), ("video_500", "ema", 2)):
        assert Best(tmp_path, measure, kind, start=start).lowest == float("inf")


@pytest.mark.parametrize("override", ["validation.batch_size=2", "task=text", "task=autoencoder"])
def test_the_losses_that_may_be_lowest_are_those_of_a_validation(trainer, override):
    made = trainer("validation.every=1", "validation.clips=2", override)
    measured = made.validation.losses(made.engine.module)
    others = [name for name in measured if name.startswith("reference_gain") or name == "latent_std"]
    assert measured.keys() - others == set(held_out_losses(made.config))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["checkpoint.best=vidoe_500"], r"checkpoint.best='vidoe_500' .* \(did you mean 'video_500'\?\)"),
        (["checkpoint.best=video_300", "validation.levels=[100,500]"], r"choose from .*video_500"),
        (["checkpoint.best=reference_gain_500"], "choose from"),  # the more, the better
        (["checkpoint.best=reference_500", "task=text"], "choose from"),
        (["checkpoint.best=anchor", "task=autoencoder"], "choose from loss, reconstruction, kl"),
        (["checkpoint.best=video_500", "validation.every=0"], r"needs validation.every, .* got 0"),
    ],
)
def test_a_measure_that_no_validation_gives_is_refused_at_once(overrides, message):
    with pytest.raises(InputError, match=message):
        load_config("smoke", ["validation.every=2", *overrides])


def test_an_anchor_may_be_the_measure():
    assert load_config(
        "smoke",
        [
            "task=autoencoder",
            "method.anchor_weight=0.1",
            "checkpoint.best=anchor",
            "validation.every=2",
        ],
    )
