"""The commands of `videomaker data`."""

import pytest
from clips import SIZE, config_of, write_lines, write_video
from layouts import write_videobooth
from tiny import tiny_pipeline
from typer.testing import CliRunner

from videomaker.data import manifest as manifests
from videomaker.data.cache import open_cache


def run(*arguments):
    from videomaker.cli import app

    result = CliRunner().invoke(app, ["data", *map(str, arguments)])
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture
def videobooth(tmp_path):
    return write_videobooth(tmp_path)


def test_commands_prepare_a_data_set(videobooth, tmp_path):
    out, clean, masks = tmp_path / "all.jsonl", tmp_path / "clean.jsonl", videobooth / "parsing"
    code, text = run("index", "--layout", "videobooth", "--root", videobooth, "--masks", masks, "--out", out)
    assert code == 0, text
    assert "1 clips in" in text
    assert "left out, bad mask.json: 2" in text
    (tmp_path / "gone.jsonl").write_text(out.read_text() + '{"video": "gone.mp4", "caption": "x"}\n{')
    code, text = run("check", tmp_path / "gone.jsonl")
    assert code == 2
    assert "gone.jsonl:2: clip 'gone': missing" in text
    assert run("check", tmp_path / "gone.jsonl", "--out", clean)[0] == 0
    assert len(manifests.read_manifest(clean)) == 1
    code, text = run("shard", clean, "--out", tmp_path / "shards")
    assert code == 0, text
    pipeline = tiny_pipeline()
    pipeline.save_pretrained(tmp_path / "model")
    size = ["--num-frames", 3, "--frame-stride", 4, "--height", SIZE, "--width", SIZE]
    manifest = tmp_path / "shards" / "manifest.jsonl"
    code, text = run("cache", manifest, "--model", tmp_path / "model", "--out", tmp_path / "cache", *size)
    assert code == 0, text
    config = config_of(tmp_path / "shards", cache=str(tmp_path / "cache"))
    opened = open_cache(config, vae=pipeline.vae, text_encoder=pipeline.text_encoder, tokenizer=pipeline.tokenizer)
    assert opened.entries.keys() == {"dog-100"}


def test_a_script_can_tell_whether_lines_were_left_out(tmp_path):
    write_video(tmp_path / "good.mp4", 5)
    lines = [{"video": "good.mp4", "caption": "x"}, {"video": "gone.mp4", "caption": "x"}]
    path, clean = write_lines(tmp_path / "all.jsonl", lines), tmp_path / "clean.jsonl"
    assert run("check", path, "--out", clean)[0] == 0
    code, text = run("check", path, "-o", clean, "--strict")
    assert code == 2 and "unusable lines (1): they are left out of --out" in text
    assert len(manifests.read_manifest(clean)) == 1
    assert run("check", clean, "--strict")[0] == 0
    assert "1 clips of 1 that were looked at (1 in the manifest) are good" in run("check", clean, "--sample", "1")[1]


def test_an_absent_manifest_is_named_whatever_else_is_wrong(tmp_path):
    code, text = run("check", tmp_path / "nope.jsonl", "--out", tmp_path / "elsewhere" / "clean.jsonl")
    assert code == 2 and "no manifest at" in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["index", "--layout", "celebv-text", "--root", "nowhere", "--out", "m.jsonl"],
        ["index", "--layout", "celebv-text", "--root", ".", "--out", "m.jsonl", "--masks", "."],
        ["check", "nowhere.jsonl"],
        ["shard", "nowhere.jsonl", "--out", "shards"],
        ["cache", "nowhere.jsonl", "--model", "nowhere", "--out", "cache"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_commands_refuse_and_write_nothing(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, text = run(*arguments)
    assert code == 2
    assert text.startswith("error: ")
    assert not list(tmp_path.iterdir())


def test_more_clips_than_names_are_refused(tmp_path):
    code, text = run("sprites", "--clips", 10**30, "--out", tmp_path / "out")
    assert code == 2 and "--clips" in text and not (tmp_path / "out").exists()
