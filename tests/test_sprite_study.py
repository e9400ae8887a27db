"""The sprite world over several seeds: traits, rates with intervals, what is written, and going on."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from tiny import tiny_pipeline
from typer.testing import CliRunner

from videomaker.cli import app
from videomaker.errors import InputError
from videomaker.evaluation import sprite_study
from videomaker.evaluation.creatures import creature_row, failures, rate, traits
from videomaker.evaluation.intervals import wilson
from videomaker.evaluation.sprite_study import study_sprites
from videomaker.evaluation.sprites import SpriteSuite, sprite_cases
from videomaker.sprites.measure import ClipScores
from videomaker.sprites.world import draw_clip, enlarge

SUITE = SpriteSuite(clips=12)


def scores(identity: bool) -> ClipScores:
    return ClipScores(identity, identity, True, True, False, True, 10.0, 0.9, True)


def test_wilson_is_the_score_interval():
    """Its ends are the rates whose normal test of the found one just fails; and never outside 0 to 1."""
    z = 1.959964
    for hits, count in ((0, 7), (7, 7), (45, 100), (390, 400)):
        found = wilson(hits, count)
        assert (found.mean, found.count) == (hits / count, count)
        for end in {found.low, found.high} - {0.0, 1.0}:
            assert abs(found.mean - end) == pytest.approx(z * np.sqrt(end * (1 - end) / count), rel=1e-5)
    assert wilson(0, 7).low == 0 and wilson(7, 7).high == 1 and 0 < wilson(0, 7).high < 0.5
    with pytest.raises(ValueError, match="no rate"):
        wilson(1, 0)


def test_wilson_covers():
    rng = np.random.default_rng(0)
    for truth in (0.5, 0.85, 0.97):
        found = [wilson(int(hits), 100) for hits in rng.binomial(100, truth, 2000)]
        assert np.mean([one.low <= truth <= one.high for one in found]) == pytest.approx(0.95, abs=0.03)


def test_traits_are_of_the_pixels_that_a_video_shows():
    case = next(case for case in sprite_cases(SpriteSuite(clips=40)) if case.clip.size == "small")
    found = traits(case)
    frames, masks = draw_clip(case.clip)
    shown = frames[masks].reshape(len(frames), -1, 3)[0]
    assert found["pixels"] == len(shown) <= 16
    assert found["brightness"] == pytest.approx(shown.mean())
    assert found["lost_detail"] > 0 and found["nearest_distractor"] > 0
    big = replace(case, clip=replace(case.clip, size="big"))
    assert traits(big)["lost_detail"] == 0 and traits(big)["pixels"] > found["pixels"]
    turned = replace(case, mirrored=not case.mirrored)
    assert {found["reference"], traits(turned)["reference"]} == {"turned", "as in the video"}


def test_failures_are_told_by_size_and_trait():
    """Made so that exactly the dark small ones fail: the table says so."""
    cases = sprite_cases(SpriteSuite(clips=200))
    small = sorted(traits(case)["brightness"] for case in cases if case.clip.size == "small")
    dark = small[len(small) // 3]
    rows = [
        creature_row(0, index, case, scores(case.clip.size == "big" or traits(case)["brightness"] > dark))
        for index, case in enumerate(cases)
    ]
    found = failures(rows)
    assert found["big"]["all"]["all"]["identity"]["mean"] == 1
    means = [part["identity"]["mean"] for part in found["small"]["brightness"].values()]
    assert means == [0, 1, 1]
    assert "size" not in found["small"]  # all of one size: nothing to split
    for split in found["small"].values():
        assert sum(part["identity"]["count"] for part in split.values()) == len(small)
    assert rate([], "identity") is None


@pytest.fixture
def measured(monkeypatch):
    """Videos of the truth in place of a model's, of which every third creature counts as failed; and what was asked."""
    asked = []

    def made_up(pipe, suite, cases, *, on_videos):
        asked.append(suite.seed)
        on_videos(len(cases))
        videos = [enlarge(draw_clip(case.clip)[0]) for case in cases]
        return [scores(index % 3 > 0) for index in range(len(cases))], videos

    monkeypatch.setattr(sprite_study, "score_cases", made_up)
    monkeypatch.setattr(sprite_study, "suite_gain", lambda pipe, suite, cases: {300: 0.1 * suite.seed})
    return asked


def test_several_seeds_make_one_interval_and_go_on(measured, tmp_path):
    pipe, told = tiny_pipeline(), []
    results = study_sprites(pipe, SUITE, [1, 2, 3], tmp_path, progress=lambda *done: told.append(done))
    assert measured == [1, 2, 3] and told[-1] == (36, 36) and (24, 36) in told
    assert results["identity"] == pytest.approx(2 / 3)
    assert results["intervals"]["identity"]["count"] == 36
    assert results["reference_gain"] == {"300": pytest.approx(0.2)}
    assert list(results["seeds"]) == ["1", "2", "3"]
    assert json.loads((tmp_path / "results.json").read_text()) == results
    with open(tmp_path / "creatures.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 36 and sum(line["score_identity"] == "True" for line in lines) == 24
    assert (tmp_path / "videos.png").is_file() and (tmp_path / "seed-2" / "failed.png").is_file()
    before = (tmp_path / "results.json").read_bytes()
    (tmp_path / "seed-2" / "results.json").write_text("{")
    study_sprites(pipe, SUITE, [1, 2, 3], tmp_path)
    assert measured == [1, 2, 3, 2] and (tmp_path / "results.json").read_bytes() == before


def test_a_folder_is_of_one_suite_and_one_model(measured, tmp_path):
    pipe = tiny_pipeline()
    study_sprites(pipe, SUITE, [1, 2], tmp_path)
    study_sprites(pipe, SUITE, [3], tmp_path)  # another seed is none
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    others = replace(SUITE, guidance_scale=3.0, reference="none")
    for seeds in ([1], [4]):
        with pytest.raises(InputError, match=r"made with guidance_scale 2\.0, reference white: use --overwrite"):
            study_sprites(pipe, others, seeds, tmp_path)
    pipe.unet.conv_out.bias.data += 1
    with pytest.raises(InputError, match="made with another model: use --overwrite or another --out"):
        study_sprites(pipe, SUITE, [1], tmp_path)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    study_sprites(pipe, others, [1, 2, 3], tmp_path, overwrite=True)
    assert measured == [1, 2, 3, 1, 2, 3]
    assert json.loads((tmp_path / "results.json").read_text())["suite"]["reference"] == "none"


def test_the_command_refuses_a_folder_of_other_settings_before_loading(measured, tmp_path, monkeypatch):
    study_sprites(tiny_pipeline(), SUITE, [1], tmp_path)
    monkeypatch.setattr("videomaker.jobs.prepare.load_pipeline", None)
    found = CliRunner().invoke(app, ["evaluate", "sprites", "--out", str(tmp_path), "--reference", "none"])
    assert found.exit_code == 2 and "use --overwrite or another --out" in found.output
