"""Checkpoints: complete or absent, passed over or refused when damaged."""

import errno
import json
import os
import shutil
from dataclasses import replace

import pytest
from runs import curve
from videomaker.train.checkpoint import CheckpointError
from videomaker.train.checkpoint_files import HashingFile
from videomaker.train.export import export_run
from videomaker.train.guards import StopRequest

from videomaker.errors import InputError


def test_a_full_disk_leaves_the_checkpoints_before_it(trainer, tmp_path, monkeypatch):
    whole = trainer(f"output={tmp_path}/whole")
    assert whole.run(StopRequest())

    made = trainer()
    save = HashingFile.write
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill(self, data):
        if made.step == 4:
            raise full
        return save(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(HashingFile, "write", fill)
        with pytest.raises(CheckpointError, match="No space left"):
            made.run(StopRequest())
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "step-00000002"]

    again = trainer()
    assert again.step == 2
    assert again.run(StopRequest())
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")


def test_a_damaged_checkpoint_is_passed_over(trainer, tmp_path):
    made = trainer("checkpoint.every=1", "checkpoint.keep_last=1", "checkpoint.keep_every=2", "steps=3")
    assert made.run(StopRequest())
    store = made.checkpoints
    assert store.steps() == [2, 3]  # the last one, and every second
    (tmp_path / "run/checkpoints/.step-00000009.tmp").mkdir()
    shard = next((tmp_path / "run/checkpoints/step-00000003/deepspeed").glob("*.pt"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    said = []
    assert store.newest_complete(said.append).step == 2
    assert "cut short" in said[0]
    assert "step-00000003 is damaged" in said[1] and "falling back" in said[1]


def snapshot(folder):
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def flip_a_byte(checkpoint):
    shard = next((checkpoint / "deepspeed").glob("*.pt"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)


def test_a_run_whose_checkpoints_are_all_damaged_is_refused_and_not_touched(trainer, tmp_path):
    """It would begin at step 0, drop the curve, and prune what may yet be repaired."""
    run = tmp_path / "run"
    assert trainer("checkpoint.every=1", "steps=3").run(StopRequest())
    for checkpoint in (run / "checkpoints").glob("step-*"):
        flip_a_byte(checkpoint)
    (run / "checkpoints" / ".step-00000009.tmp").mkdir()
    before = snapshot(run)
    with pytest.raises(InputError, match=r"has 2 checkpoints and none .*step-00000003.*nothing was changed"):
        trainer("checkpoint.every=1", "steps=5")
    assert snapshot(run) == before
    with pytest.raises(InputError, match="none can be used"):
        export_run(run)
    assert snapshot(run) == before


@pytest.mark.parametrize(
    "manifest", [{"step": 3}, {}, [], "three", {"step": "x", "stage": 0, "world_size": 1, "state": {}, "files": {}}]
)
def test_a_manifest_that_is_not_as_expected_is_passed_over(trainer, tmp_path, manifest):
    made = trainer("checkpoint.every=1", "checkpoint.keep_last=3", "steps=3")
    assert made.run(StopRequest())
    (tmp_path / "run" / "checkpoints" / "step-00000003" / "manifest.json").write_text(json.dumps(manifest))
    said = []
    assert made.checkpoints.newest_complete(said.append).step == 2
    assert len(said) == 1 and "manifest that is not as expected" in said[0]


def test_what_lies_beside_the_checkpoints_is_left_alone(trainer, tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    assert trainer("steps=2").run(StopRequest())
    for name in ("step-best", "step-2", "step-00000001-copy"):
        shutil.copytree(folder / "step-00000002", folder / name)
    (folder / "step-00000007").write_text("a file")
    before = snapshot(folder / "step-best")
    said = []
    made = trainer("steps=6", "checkpoint.keep_last=1")
    assert made.step == 2 and made.checkpoints.newest_complete(said.append, clean=False).step == 2
    assert sorted(line.split()[0] for line in said) == ["step-00000001-copy", "step-2", "step-best"]
    assert made.run(StopRequest())
    assert snapshot(folder / "step-best") == before
    names = {path.name for path in folder.iterdir()}
    assert names == {"latest", "step-best", "step-2", "step-00000001-copy", "step-00000007", "step-00000006"}
    export_run(tmp_path / "run")


def test_a_damaged_checkpoint_does_not_count_among_those_kept(trainer, tmp_path):
    """Else the one that stays is the damaged one, and the good one before it goes."""
    folder = tmp_path / "run" / "checkpoints"
    assert trainer("checkpoint.every=1", "checkpoint.keep_last=3", "steps=4").run(StopRequest())
    flip_a_byte(folder / "step-00000004")
    made = trainer("checkpoint.every=0", "checkpoint.keep_last=1", "steps=6")
    assert made.step == 3
    made.step, made.config = 3, replace(made.config, steps=4)
    assert made.run(StopRequest())  # writes step 4 again
    assert made.checkpoints.newest_complete(print).step == 4
    assert [path.name for path in folder.glob("step-*")] == ["step-00000004"]


def test_a_checkpoint_that_stood_aside_comes_back(trainer, tmp_path):
    """A kill between the two renames of a step that is written again."""
    folder = tmp_path / "run" / "checkpoints"
    made = trainer("steps=2")
    assert made.run(StopRequest())
    os.replace(folder / "step-00000002", folder / ".step-00000002.replaced.tmp")
    assert made.checkpoints.newest_complete(print).step == 2
    assert not list(folder.glob(".*"))
