"""Checkpoints: complete or absent, passed over or refused when damaged."""

import errno
import os
import signal

import pytest
from runs import curve
from videomaker.train.checkpoint import CheckpointError
from videomaker.train.checkpoint_files import HashingFile
from videomaker.train.guards import StopRequest


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

    monkeypatch.setattr(HashingFile, "write", fill)
    with pytest.raises(CheckpointError, match="No space left"):
        made.run(StopRequest())
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "step-00000002"]

    monkeypatch.undo()
    monkeypatch.setattr(signal, "signal", lambda *_: None)
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
