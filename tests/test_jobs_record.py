"""Records of results: whatever a file is called, what was recorded is found again."""

import json
from dataclasses import replace

import pytest
from generating import generate
from tiny import tiny_pipeline
from typer.testing import CliRunner

from videomaker import VideoMakerPipeline
from videomaker.cli import app
from videomaker.jobs.finished import fingerprint
from videomaker.jobs.record import _json_digest, component_digests
from videomaker.jobs.request import ModelSpec


def test_a_picture_whose_name_is_no_text_is_recorded_and_found_again(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "model")
    code, output, record = generate(tmp_path, "--model", tmp_path / "model", picture="\udcff.png")
    assert code == 0, output
    assert record["references"] == [{**record["references"][0], "path": str(tmp_path / "\udcff.png")}]
    (file,) = (tmp_path / "out").glob("*.json")
    again = CliRunner().invoke(app, ["generate", "--from-json", str(file), "-o", str(tmp_path / "again")])
    assert again.exit_code == 0 and "the same bytes" in again.output


def test_an_empty_word_is_not_the_same_as_none(tmp_path):
    for option, words in {"--model": "unknown model ''", "--highlight": "it is empty"}.items():
        code, output, _ = generate(tmp_path, option, "")
        assert code == 2 and words in " ".join(output.split())


def test_a_record_keeps_letters_as_they_are(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "model")
    code, output, record = generate(tmp_path, "--model", tmp_path / "model", picture="é.png")
    assert code == 0, output
    (file,) = (tmp_path / "out").glob("*.json")
    assert "é.png" in file.read_text(encoding="utf-8") and json.loads(file.read_text(encoding="utf-8")) == record


def test_digests_tell_a_pipeline_without_pisa():
    """It makes other frames of the same weights; with PISA the digest is that of records made before it was asked."""
    pipe = tiny_pipeline()
    without = VideoMakerPipeline(**tiny_pipeline().components, use_pisa=False)
    found, other = component_digests(pipe), component_digests(without)
    assert [name for name in found if found[name] != other[name]] == ["configuration"]
    scheduler = {key: value for key, value in pipe.scheduler.config.items() if not key.startswith("_")}
    before = {
        "scheduler": scheduler,
        "scaling_factor": pipe.vae.config.scaling_factor,
        "reference_cross_attention": pipe.config.reference_cross_attention,
    }
    assert found["configuration"] == _json_digest(before)


@pytest.mark.parametrize("part", ["motion_adapter", "weights", "vae", "loras"])
def test_a_file_that_is_replaced_in_its_place_makes_another_model(part, tmp_path):
    """Or a video of the old file would be taken for one of the new."""
    file = tmp_path / "part.safetensors"
    spec = replace(ModelSpec(), **{part: (f"{file}:0.5",) if part == "loras" else str(file)})
    file.write_bytes(b"one")
    before = fingerprint(spec)
    assert fingerprint(spec) == before
    file.write_bytes(b"another")
    assert fingerprint(spec) != before


def test_a_motion_adapter_of_the_hub_is_told_by_its_revision(tmp_path, monkeypatch):
    where = {"newest": tmp_path / "a"}
    monkeypatch.setattr("videomaker.weights.sources.local_path", lambda source: where["newest"])
    found = []
    for name in ("a", "b"):
        where["newest"] = tmp_path / name
        where["newest"].mkdir()
        (where["newest"] / "config.json").write_text(name)
        found.append(fingerprint(ModelSpec(motion_adapter="owner/name")))
    assert found[0] != found[1]
