"""Records of results: whatever a file is called, what was recorded is found again."""

import json

from generating import generate
from tiny import tiny_pipeline
from typer.testing import CliRunner

from videomaker.cli import app


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
