"""Suites from files to reports: runs that are killed, videos of any method, shards, comparisons, what is refused."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny_metrics import blocks, moving_video, write_networks, write_suite
from typer.testing import CliRunner

from videomaker import media
from videomaker.cli import app
from videomaker.data.sharing import parse_shard
from videomaker.errors import InputError
from videomaker.evaluation import metrics
from videomaker.evaluation.networks import Clip, Dino
from videomaker.evaluation.suite import read_suite
from videomaker.evaluation.videos import read_video

NAMES = ("clip_t", "clip_i", "dino_i", "face", "t_cons", "dd")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    return write_networks(tmp_path_factory.mktemp("models"))


def evaluate(*arguments):
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def write_videos(folder: Path, *, kind: str = ".mp4", subjects: int = 2, step: int = 3) -> Path:
    """A video for each of two subjects, two prompts and the seeds 1 and 2."""
    for subject in range(subjects):
        for name in ("0-1", "0-2", "1-1", "1-2"):
            base = folder / f"s{subject}" / name
            frames = moving_video(subject + 10 * int(name[0]), step=step)
            base.parent.mkdir(parents=True, exist_ok=True)
            if kind == "frames":
                base.mkdir()
                media.write_frames(base, frames)
            else:
                media.write(base.with_suffix(kind), frames, kind[1:], fps=8)
    return folder


@pytest.mark.parametrize("kind", [".mp4", ".gif", "frames"])
def test_videos_of_any_method_are_measured(models, tmp_path, kind):
    pytest.importorskip("cv2")
    suite = write_suite(tmp_path / "suite", subjects=2, prompts=2)
    videos, out = write_videos(tmp_path / "videos", kind=kind), tmp_path / "out"
    result = evaluate("measure", videos, suite, "-o", out, "--models", models, "--flow", "dis", "--paper", "objects")
    assert result.exit_code == 0, result.output
    report = json.loads((out / "report.json").read_text())
    assert tuple(report["metrics"]) == NAMES
    assert report["metrics"]["face"]["mean"] is None and "put insightface" in report["metrics"]["face"]["reason"]
    measured = [value for name, value in report["metrics"].items() if name != "face"]
    assert all(value["low"] <= value["mean"] <= value["high"] and value["count"] == 8 for value in measured)
    video = videos / "s1" / f"1-2{'' if kind == 'frames' else kind}"
    frames = [Image.fromarray(frame) for frame in read_video(video)]
    values = json.loads((out / "measures" / "s1" / "1-2.json").read_text())["metrics"]
    reference = Image.open(suite / "s1.png").convert("RGB")
    clip, dino = Clip(models / "clip", "cpu"), Dino(models / "dino", "cpu")
    by_hand = {
        "clip_t": metrics.cosines(clip.pictures(frames), clip.text("a big creature over a blue sea")),
        "clip_i": metrics.cosines(clip.pictures(frames), clip.pictures([reference])[0]),
        "dino_i": metrics.cosines(dino.pictures(frames), dino.pictures([reference])[0]),
        "t_cons": metrics.consecutive_cosines(clip.pictures(frames)),
    }
    for name, expected in by_hand.items():
        np.testing.assert_allclose(values[name]["frames"], expected, atol=1e-6)
        assert values[name]["value"] == pytest.approx(expected.mean(), abs=1e-6)
    assert len(values["dd"]["frames"]) == 4 and values["dd"]["threshold"] == 0.75
    rows = list(csv.DictReader((out / "videos.csv").read_text().splitlines()))
    assert len(rows) == 8 and rows[0]["face"] == ""
    text = (out / "report.md").read_text()
    assert "VideoMaker † (AnimateDiff SD 1.5) | 0.2840" in text and "Rows marked † are quoted, not measured" in text
    assert {"best.png", "worst.png", "tradeoff.png"} <= {path.name for path in out.iterdir()}


def test_rows_that_need_no_model(models, tmp_path):
    """The reference held still is the ceiling of copying; another subject's reference is the floor."""
    pytest.importorskip("cv2")
    suite = write_suite(tmp_path / "suite", subjects=2, prompts=2)
    out = tmp_path / "out"
    assert (
        evaluate(
            "measure", write_videos(tmp_path / "v"), suite, "-o", out, "--models", models, "--flow", "dis"
        ).exit_code
        == 0
    )
    rows = json.loads((out / "report.json").read_text())["rows"]
    for name in ("clip_i", "dino_i", "t_cons"):
        assert rows["still"][name]["mean"] == pytest.approx(1, abs=1e-9)
    assert rows["still"]["dd"]["mean"] == 0
    clip = Clip(models / "clip", "cpu")
    video = [Image.fromarray(frame) for frame in read_video(tmp_path / "v" / "s0" / "0-1.mp4")]
    other = clip.pictures([Image.open(suite / "s1.png").convert("RGB")])[0]
    found = json.loads((out / "measures" / "s0" / "0-1.json").read_text())["other_subject"]["clip_i"]
    assert found == pytest.approx(metrics.cosines(clip.pictures(video), other).mean(), abs=1e-6)


def test_only_what_changed_is_measured_again(models, tmp_path, monkeypatch):
    suite = write_suite(tmp_path / "suite", subjects=2, prompts=2)
    videos, out, mine = write_videos(tmp_path / "v"), tmp_path / "out", tmp_path / "models"
    shutil.copytree(models / "clip", mine / "clip")
    command = ("measure", videos, suite, "-o", out, "--models", mine)
    assert evaluate(*command).exit_code == 0
    file = out / "measures" / "s0" / "0-1.json"
    first = json.loads(file.read_text())
    assert first["metrics"]["dino_i"]["value"] is None
    calls, pictures = [], Clip.pictures
    monkeypatch.setattr(Clip, "pictures", lambda self, images: calls.append(len(images)) or pictures(self, images))
    assert evaluate(*command).exit_code == 0
    assert calls == []
    shutil.copytree(models / "dino", mine / "dino")  # a network comes later: the others' values stay
    assert evaluate(*command).exit_code == 0
    second = json.loads(file.read_text())
    assert calls == [] and second["metrics"]["dino_i"]["value"] is not None
    assert second["metrics"]["clip_i"] == first["metrics"]["clip_i"]
    media.write_mp4(videos / "s0" / "0-1.mp4", moving_video(77), fps=8)
    assert evaluate(*command).exit_code == 0
    assert calls and json.loads(file.read_text())["metrics"]["clip_i"] != first["metrics"]["clip_i"]


def test_a_renamed_heading_is_renamed_in_the_report(models, tmp_path, monkeypatch):
    """Without measuring again."""
    suite = write_suite(tmp_path / "suite", subjects=2, prompts=2)
    values = yaml.safe_load((suite / "suite.yaml").read_text())
    one, two = values["prompts"]
    (suite / "suite.yaml").write_text(yaml.safe_dump(values | {"prompts": "prompts.txt"}))
    command = ("measure", write_videos(tmp_path / "v"), suite, "-o", tmp_path / "out", "--models", models)
    for headings in (("slow", "fast"), ("standing", "moving")):
        (suite / "prompts.txt").write_text(f"# {headings[0]}\n{one}\n# {headings[1]}\n{two}\n")
        assert evaluate(*command).exit_code == 0
        assert tuple(json.loads((tmp_path / "out" / "report.json").read_text())["by_kind"]) == headings
        monkeypatch.setattr(Clip, "pictures", lambda self, images: pytest.fail("measured again"))


def test_two_reports_are_compared_video_by_video(models, tmp_path):
    suite = write_suite(tmp_path / "suite", subjects=2, prompts=2)
    for name, step in (("one", 3), ("two", 1)):
        videos = write_videos(tmp_path / f"videos-{name}", step=step)
        assert evaluate("measure", videos, suite, "-o", tmp_path / name, "--models", models).exit_code == 0
    result = evaluate("report", tmp_path / "one", tmp_path / "two", "--paper", "people")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "one" / "differences.json").read_text())[str(tmp_path / "two")]
    means = [
        json.loads((tmp_path / name / "report.json").read_text())["metrics"]["t_cons"]["mean"]
        for name in ("one", "two")
    ]
    assert found["t_cons"]["mean"] == pytest.approx(means[0] - means[1])
    assert found["t_cons"]["count"] == 8
    assert "This report minus the other" in (tmp_path / "one" / "report.md").read_text()


def test_videos_are_compared_against_the_same_pictures(models, tmp_path):
    """Of two runs whose references of s1 differ, only s0 tells of the subject."""
    suite = write_suite(tmp_path / "suite", subjects=2, prompts=2)
    videos = write_videos(tmp_path / "videos")
    for name in ("one", "two"):
        assert evaluate("measure", videos, suite, "-o", tmp_path / name, "--models", models).exit_code == 0
        Image.fromarray(blocks(7)).save(suite / "s1.png")
    assert evaluate("report", tmp_path / "one", tmp_path / "two").exit_code == 0
    found = json.loads((tmp_path / "one" / "differences.json").read_text())[str(tmp_path / "two")]
    assert {name: value["count"] for name, value in found.items()} == {
        "clip_t": 8, "clip_i": 4, "t_cons": 8, "dino_i": 4,
    }  # fmt: skip
    assert all(value["mean"] == value["low"] == value["high"] == 0 for value in found.values())
    note = "- CLIP-I, DINO-I, Face: without 4 videos that were measured against other reference pictures"
    assert note in (tmp_path / "one" / "report.md").read_text().splitlines()


def test_shards_share_the_work_and_the_last_reports(models, tmp_path):
    suite = write_suite(tmp_path / "suite", subjects=2, prompts=2)
    videos, out = write_videos(tmp_path / "v"), tmp_path / "out"
    command = ("measure", videos, suite, "-o", out, "--models", models)
    first = evaluate(*command, "--shard", "1/2")
    assert first.exit_code == 0 and "4 of 8 videos are measured" in first.output
    assert not (out / "report.json").exists()
    assert evaluate(*command, "--shard", "2/2").exit_code == 0
    sharded = (out / "report.json").read_bytes()
    assert evaluate(*command[:4], tmp_path / "whole", *command[5:]).exit_code == 0
    assert (tmp_path / "whole" / "report.json").read_bytes() == sharded
    assert parse_shard("2/3").of([0, 1, 2, 3, 4]) == [1, 4]
    for text in ("0/2", "3/2", "x", "1"):
        with pytest.raises(InputError, match="i from 1 to n"):
            parse_shard(text)


def run_suite(suite: Path, out: Path, models: Path) -> subprocess.Popen:
    command = [sys.executable, "-P", "-m", "videomaker", "evaluate", "run", suite, "-o", out, "--models", models]
    command += ["--steps", "1", "--frames", "4", "--batch-size", "8"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(list(map(str, command)), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_a_run_killed_at_random_moments_ends_with_the_same_report(models, tmp_path):
    """3 subjects × 4 prompts × 2 seeds on the embedded model, and plain AnimateDiff's row."""
    suite = write_suite(tmp_path / "suite")
    whole = run_suite(suite, tmp_path / "whole", models)
    output = whole.communicate(timeout=500)[0].decode()
    assert whole.returncode == 0, output
    expected = (tmp_path / "whole" / "report.json").read_bytes()
    rows = json.loads(expected)["rows"]
    assert rows["plain"]["clip_i"]["count"] == 24
    rng, out = random.Random(4), tmp_path / "killed"
    for enough in (rng.randint(1, 20), rng.randint(26, 44)):  # files of videos, then of measures
        process = run_suite(suite, out, models)
        while process.poll() is None and len([*out.glob("videos/*/*.json"), *out.glob("measures/*/*.json")]) < enough:
            time.sleep(0.01)
        assert process.poll() is None, process.communicate()[0].decode()
        process.send_signal(signal.SIGKILL)
        process.communicate()
    last = run_suite(suite, out, models)
    output = last.communicate(timeout=500)[0].decode()
    assert last.returncode == 0, output
    assert (out / "report.json").read_bytes() == expected


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"subjects": []}, "subjects should be a list"),
        ({"subjects": [{"name": "../x", "image": "s0.png"}]}, "letters, digits"),
        ({"subjects": [{"name": "a", "image": "none.png"}]}, "does not exist"),
        ({"subjects": [{"name": "a", "image": "x" * 5000}]}, "does not exist"),
        ({"subjects": [{"name": "x" * 61, "image": "none.png"}]}, "up to 60 letters"),
        ({"subjects": [{"name": "a", "image": "s0.png", "box": [1, 2]}]}, "should be [x1, y1, x2, y2]"),
        ({"subjects": [{"name": "a", "image": "s0.png"}, {"name": "A", "image": "s0.png"}]}, "two subjects"),
        ({"prompts": []}, "prompts should be"),
        ({"prompts": "objects"}, "is for the class ''"),
        ({"subjects": [{"name": "a", "image": "s0.png", "box": [9, 9, 3, 3]}]}, "should be [x1, y1, x2, y2]"),
        ({"subjects": [{"name": "a", "image": "s0.png", "box": [float("nan"), 0, 9, 9]}]}, "[x1, y1, x2, y2]"),
        ({"subjects": [{"name": "a", "image": "s0.png", "class": {"a": 1}}]}, "should be a word such as dog"),
        ({"subjects": [{"name": "a", "image": "s0.png", "class": {}}]}, "should be a word such as dog"),
        ({"subjects": [{"name": "a", "image": "s0.png", "mask": []}]}, "mask of 'a' should be a picture's path"),
        ({"subjects": [{"name": "a", "image": "s0.png", "mask": 0}]}, "mask of 'a' should be a picture's path"),
        ({"subjects": [{"name": "a", "image": "s0.png", "mask": ""}]}, "does not exist"),
        ({"subjects": [{"name": False, "image": "s0.png"}]}, "name False should be up to 60 letters"),
        ({"subjects": [{"name": ["a"], "image": "s0.png"}]}, "name ['a'] should be up to 60 letters"),
        ({"prompts": ["x" * 10_001]}, "give at most 10,000"),
        ({"seeds": [-1]}, "should be a number from 0"),
        ({"seeds": None}, "seeds should be a list"),
        ({"steps": 3}, "has 'steps', which is not one of"),
    ],
)
def test_suites_that_are_not_understood(tmp_path, change, words):
    folder = write_suite(tmp_path)
    values = yaml.safe_load((folder / "suite.yaml").read_text()) | change
    (folder / "suite.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(InputError) as refused:
        read_suite(folder)
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_prompts_by_class_and_kind(tmp_path):
    folder = write_suite(tmp_path)
    entry = {"name": "rex", "image": "s0.png", "class": "dog"}
    person = {"name": "ann", "image": "s1.png", "class": "person"}
    values = {"subjects": [entry, person], "prompts": {"dog": "objects", "person": "people"}}
    (folder / "suite.yaml").write_text(yaml.safe_dump(values))
    suite = read_suite(folder)
    assert [len(suite.prompts[name]) for name in ("rex", "ann")] == [10, 25]
    assert {prompt.kind for prompt in suite.prompts["rex"]} == {"action", "attribute", "scene"}
    assert len({prompt.kind for prompt in suite.prompts["ann"]}) == 5
    items = suite.items()
    assert (items[3].name, items[10].name, items[10].subject.name) == ("3-42", "0-42", "ann")


def test_what_is_not_there_is_said(models, tmp_path):
    suite = write_suite(tmp_path / "suite", subjects=2, prompts=2)
    (tmp_path / "videos" / "s0").mkdir(parents=True)
    result = evaluate("measure", tmp_path / "videos", suite, "-o", tmp_path / "out", "--models", models)
    assert result.exit_code == 2 and "the first would be s0/0-1.mp4" in result.output.replace("\n", " ")
    (tmp_path / "videos" / "s0" / "0-1.mp4").write_bytes(b"no video")
    result = evaluate("measure", tmp_path / "videos", suite, "-o", tmp_path / "out", "--models", models)
    assert result.exit_code == 2 and "cannot be read" in result.output
    result = evaluate("measure", tmp_path / "videos", suite, "-o", tmp_path / "out")
    assert result.exit_code == 2 and "no measure can be taken" in result.output
    result = evaluate("report", tmp_path)
    assert result.exit_code == 2 and "holds no results" in result.output
