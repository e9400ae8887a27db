"""DeepSpeed's operators: announced, compiled by one process at a time, and never waited for in vain."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch.utils.cpp_extension
from videomaker.train import operators
from videomaker.train.operators import load_operator, remove_lost_mark

from videomaker.errors import InputError

NAME = "deepspeed_shm_comm"


@pytest.fixture
def mark(tmp_path) -> Path:
    """Of a process that was killed a minute ago."""
    path = tmp_path / "lock"
    path.touch()
    os.utime(path, (time.time() - 60,) * 2)
    return path


def test_a_build_is_announced_and_needs_a_compiler(tmp_path, monkeypatch, process_group):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("RANK", "0")
    said = []
    load_operator("ShareMemCommBuilder", said.append)  # this process has it in memory: nothing is compiled
    assert len(said) == 1 and said[0].startswith(f"DeepSpeed compiles its operator {NAME}")
    monkeypatch.setenv("CXX", "absent++")
    with pytest.raises(InputError, match=r"no C\+\+ compiler 'absent\+\+'"):
        load_operator("ShareMemCommBuilder", said.append)


def test_a_start_goes_on_after_another_was_killed_while_it_loaded(tmp_path, process_group):
    """As left by kill -9: torch alone would wait for ever."""
    built = Path(torch.utils.cpp_extension._get_build_directory(NAME, False))
    shutil.copytree(built, tmp_path / NAME)
    mark = tmp_path / NAME / "lock"
    mark.touch()
    os.utime(mark, (time.time() - 60,) * 2)
    program = "from videomaker.train.operators import load_operator; load_operator('ShareMemCommBuilder')"
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], env=environment, capture_output=True, text=True, timeout=300, check=True
    )
    assert f"{mark} was left by a process that was killed" in done.stdout
    assert not mark.exists()


def test_a_mark_that_nobody_holds_is_removed(mark):
    said = []
    remove_lost_mark(mark, 5, said.append)
    assert not mark.exists() and len(said) == 1


def test_a_process_that_compiles_is_waited_for(mark):
    said, freed = [], []
    holder = mark.open("rb")

    def free():
        freed.append(mark.exists())
        holder.close()
        mark.unlink()

    threading.Timer(1.5, free).start()
    remove_lost_mark(mark, 5, said.append)
    assert freed == [True] and not mark.exists()
    assert len(said) == 1 and "waited for" in said[0]


def test_where_a_disk_has_no_locks_a_mark_must_be_old(mark, tmp_path, monkeypatch):
    def none(*_):
        raise OSError("no locks here")

    monkeypatch.setattr(operators.fcntl, "flock", none)
    with operators._turn(tmp_path / "turn") as has_locks:
        assert not has_locks
    os.utime(mark, (time.time() - operators.BUILD_SECONDS + 1,) * 2)
    begin = time.monotonic()
    remove_lost_mark(mark, operators.BUILD_SECONDS, lambda _: None)
    assert not mark.exists() and time.monotonic() - begin > 0.9
