"""Commands spread over a Ray cluster: the files are those of one process, also when a task is killed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from clips import write_lines, write_video
from tiny_finders import write_finders
from tiny_metrics import write_networks, write_suite
from typer.testing import CliRunner

from videomaker.cli import app

TASKS = 2


def run(*arguments):
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output


def on_ray(address, *arguments) -> subprocess.Popen:
    command = [sys.executable, "-P", "-m", "videomaker", *arguments, "--ray", address, "--ray-tasks", TASKS]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process, *words):
    output = process.communicate(timeout=800)[0]
    assert process.returncode == 0, output
    assert all(word in output for word in (f"{TASKS} of {TASKS} parts are done", *words)), output


def kill_a_task(name, files, process, seconds=600) -> None:
    """With -9, once it has made something."""
    until = time.monotonic() + seconds
    while not any(files()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until, f"no task {name} has made anything in {seconds} s"
        time.sleep(0.05)
    tasks = [one for one in psutil.process_iter(["cmdline"]) if one.info["cmdline"][:1] == [f"ray::{name}"]]
    tasks[0].kill()


def contents(folder: Path) -> dict[str, bytes]:
    """What is there under its final name."""
    files = [path for path in folder.rglob("*") if path.is_file() and "/." not in str(path)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(files)}


@pytest.mark.scale
@pytest.mark.timeout(900)
def test_an_evaluation_whose_task_is_killed_ends_in_the_same_files(ray_cluster, tmp_path):
    suite, models = write_suite(tmp_path / "suite", subjects=2, prompts=2), write_networks(tmp_path / "models")
    command = ["--models", models, "--steps", "1", "--frames", "4", "--batch-size", "2"]
    spread = tmp_path / "spread" / "out"
    process = on_ray(ray_cluster, "evaluate", "run", suite, "-o", spread, *command)
    kill_a_task("videomaker.cli.evaluate:run", lambda: spread.glob("videos/*/*.json"), process)
    finish(process, "T.Cons", "report.json")
    whole = tmp_path / "whole" / "out"
    run("evaluate", "run", suite, "-o", whole, *command)
    expected, found = contents(whole), contents(spread)
    assert found.keys() == expected.keys()
    assert {name for name in expected if found[name] != expected[name]} == set()


@pytest.mark.scale
@pytest.mark.timeout(900)
def test_highlighting_over_the_cluster_makes_the_same_masks(ray_cluster, tmp_path):
    models = write_finders(tmp_path / "models", queries=1)
    for name in ("spread", "whole"):
        clips = [f"clip{number}" for number in range(5)]
        for clip in clips:
            write_video(tmp_path / name / f"{clip}.mp4", 8)
        lines = [{"video": f"{clip}.mp4", "caption": "x", "subject_phrase": "head"} for clip in clips]
        write_lines(tmp_path / name / "manifest.jsonl", lines)

    def command(name):
        manifest, out = tmp_path / name / "manifest.jsonl", tmp_path / name / "masked.jsonl"
        networks = ("--detector", models / "grounding-dino", "--segmenter", models / "sam")
        return "data", "highlight", manifest, "--out", out, *networks, "--box-threshold", 0, "--text-threshold", 0

    finish(on_ray(ray_cluster, *command("spread")), "5 clips in")
    run(*command("whole"))
    assert contents(tmp_path / "spread") == contents(tmp_path / "whole")
