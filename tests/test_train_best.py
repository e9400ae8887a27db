"""Seeing a run: losses of the average, the best weights, plots, a trace, and what goes to the hub."""

import json

import pytest
import torch
from PIL import Image
from runs import weights
from safetensors.torch import load_file
from videomaker.train.average import average_in_place
from videomaker.train.best import read_best
from videomaker.train.export import export_run
from videomaker.train.guards import StopRequest
from videomaker.train.overrides import save_config
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
    assert best == {
        "step": min(values, key=values.get), "measure": "video_500", "value": min(values.values()), "kind": "ema",
    }  # fmt: skip
    exported = export_run(run, tmp_path / "lora.safetensors", best=True)
    kept = load_file(run / "best" / "weights.safetensors")
    assert torch.equal(next(iter(kept.values())), load_file(exported)[next(iter(kept)).replace(".default", "")])

    folder = hub_folder(run, exported, tmp_path / "hub")
    assert {path.name for path in folder.iterdir()} == {"pytorch_lora_weights.safetensors", "README.md", "samples"}
    assert "samples/sheet.png" in (folder / "README.md").read_text() and (folder / "samples" / "sheet.png").is_file()
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


def test_a_measure_that_is_not_there_is_named(trainer):
    made = trainer("validation.every=1", "validation.clips=2", "checkpoint.best=vidoe_500", "steps=1")
    with pytest.raises(InputError, match=r"vidoe_500.*video_500"):
        made.run(StopRequest())
