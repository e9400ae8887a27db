"""`bench/ablation.py`: its rows add up, and what was made with other settings is kept apart."""

import argparse
import importlib
import json
from pathlib import Path

import pytest
from videomaker.train.overrides import load_config

from videomaker import default_model_path


@pytest.fixture
def ablation(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))
    return importlib.import_module("ablation")


def test_rows_of_the_ablation_add_up(ablation):
    rows = ablation.ROWS
    configs = [load_config("sprites", row.overrides) for row in list(rows.values())[2:]]
    steps = [
        (c.method.girl_weight > 0, c.method.reference_cross_attention, c.method.update_motion, c.data.highlight)
        for c in configs
    ]
    assert steps == [tuple(index < switched for index in range(4)) for switched in range(5)]
    assert not any(config.method.train_all for config in configs)


def test_an_ablation_keeps_trainings_and_measures_of_other_settings_apart(ablation, monkeypatch, tmp_path):
    options = {"base": default_model_path(), "out": tmp_path, "clips": 4, "set": [], "seeds": [0], "rows": ["PISA"]}
    options = argparse.Namespace(**options, steps=2)
    longer = argparse.Namespace(**{**vars(options), "steps": 3})
    begun = []
    monkeypatch.setattr(ablation.VideoMakerPipeline, "from_pretrained", begun.append)
    run = tmp_path / "runs" / "pisa-0"
    (run / "pipeline").mkdir(parents=True)  # of a training that ended
    ablation.train_row("PISA", ablation.ROWS["PISA"], 0, options)
    with pytest.raises(SystemExit, match=r"'steps': 2.* not .*'steps': 3"):
        ablation.train_row("PISA", ablation.ROWS["PISA"], 0, longer)
    assert begun == [run / "pipeline"]
    measures = tmp_path / "measures"
    measures.mkdir()
    (measures / "pisa-0.json").write_text(json.dumps({"setting": ablation._setting(options)}))
    with pytest.raises(SystemExit, match="another --out"):
        ablation.measure_row("+ GIRL", ablation.ROWS["+ GIRL"], 0, longer)
    (measures / "plus-girl-0.json").write_text(json.dumps({"setting": ablation._setting(longer)}))
    options.rows = ["PISA", "+ GIRL"]
    with pytest.raises(SystemExit, match="another --out"):
        ablation.write_report(options)
