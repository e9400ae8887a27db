"""kill -9 of `data cache`, `shard` and `highlight` at random moments: the same call goes on, nothing is lost."""

import multiprocessing
import os
import random
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from clips import SIZE, config_of, write_lines, write_video
from tiny import tiny_pipeline

from videomaker.data.cache import build_cache
from videomaker.data.highlight import highlight_manifest
from videomaker.data.shards import write_shards

CLIPS, KILLS = 10, 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills")
    lines = []
    for number in range(CLIPS):
        write_video(folder / f"{number}.mp4", 12)
        lines.append({"video": f"{number}.mp4", "caption": f"clip {number}", "category": "bar", "refs": [{"frame": 0}]})
    write_lines(folder / "manifest.jsonl", lines)
    return folder


def shard(folder, out, _):
    write_shards(folder / "manifest.jsonl", out, clips_per_shard=2)


def cache(folder, out, pipeline):
    build_cache(config_of(folder, highlight=False), pipeline, out, starts=2)


def highlight(folder, out, _):
    out.mkdir(exist_ok=True)
    for path in (*folder.glob("*.mp4"), folder / "manifest.jsonl"):
        if not (out / path.name).is_symlink():
            (out / path.name).symlink_to(path)

    def segment(image, box):
        time.sleep(0.02)
        return np.arange(SIZE * SIZE).reshape(SIZE, SIZE) % 3 == 0

    highlight_manifest(
        out / "manifest.jsonl", out / "masked.jsonl", lambda *_: (np.array([[4.0, 4, 28, 28]]), np.ones(1)), segment
    )


def contents(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def in_a_child(work, *arguments):
    """Starts `work` in a fork, which has everything imported."""

    def run():
        torch.set_num_threads(1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # its progress bar
        work(*arguments)

    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    return child


@pytest.mark.parametrize("work", [shard, cache, highlight])
def test_a_killed_call_goes_on_and_ends_in_the_same_files(work, folder, tmp_path):
    torch.set_num_threads(1)  # a fork of a process with more would wait for them for ever
    pipeline = tiny_pipeline()
    begin = time.monotonic()
    whole = in_a_child(work, folder, tmp_path / "whole", pipeline)
    whole.join(300)
    assert whole.exitcode == 0
    seconds = time.monotonic() - begin
    rng, killed = random.Random(0), 0
    while killed < KILLS:
        child = in_a_child(work, folder, tmp_path / "killed", pipeline)
        child.join(rng.uniform(0, seconds))
        if child.exitcode is None:
            os.kill(child.pid, signal.SIGKILL)
            killed += 1
        else:  # it got to its end: the next one begins anew
            shutil.rmtree(tmp_path / "killed")
        child.join(60)
    last = in_a_child(work, folder, tmp_path / "killed", pipeline)
    last.join(300)
    assert last.exitcode == 0
    expected, found = contents(tmp_path / "whole"), contents(tmp_path / "killed")
    leftovers = {name for name in found if name not in expected}
    assert all(".tmp" in name or "/." in f"/{name}" for name in leftovers), leftovers  # what a kill left half written
    assert {name: found.get(name) for name in expected} == expected
