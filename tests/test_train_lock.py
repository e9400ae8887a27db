"""The lock of a run's folder: one run at a time, whatever ends it."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time

import pytest
from videomaker.train import lock
from videomaker.train.lock import FolderLock

from videomaker.errors import InputError

HOLD = """
import os, sys, time
from pathlib import Path
from videomaker.train.lock import FolderLock
held = FolderLock(Path(sys.argv[1]))
if os.fork() == 0:  # a worker that outlives the run; once it speaks, it has let go of the file
    print("held", flush=True)
time.sleep(30)
"""


def refuse(*_):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


@pytest.fixture(params=["locks", "no locks"])
def disk(request, monkeypatch):
    """A disk with locks, and one without."""
    if request.param == "no locks":
        monkeypatch.setattr(fcntl, "flock", refuse)
        monkeypatch.setattr(lock, "_HEARTBEAT", 0.1)
        monkeypatch.setattr(lock, "_SILENCE", 1.0)
    return request.param


def test_a_folder_has_one_owner(tmp_path, disk):
    first = FolderLock(tmp_path / "run")
    with pytest.raises(InputError, match=rf"is being written by process {os.getpid()} on .*another output="):
        FolderLock(tmp_path / "run")
    if disk == "no locks":
        time.sleep(1.5)  # it goes on showing signs of life
        with pytest.raises(InputError, match="is being written"):
            FolderLock(tmp_path / "run")
    first.release()
    assert not list((tmp_path / "run").iterdir())
    FolderLock(tmp_path / "run").release()


def test_an_owner_that_was_killed_leaves_nothing(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True,
                              start_new_session=True)  # fmt: skip
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"process {holder.pid} "):
            FolderLock(tmp_path / "run")
        holder.kill()
        holder.wait()
        FolderLock(tmp_path / "run").release()
    finally:
        os.killpg(holder.pid, signal.SIGKILL)


def test_a_silent_owner_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", refuse)
    first = FolderLock(tmp_path)
    first._released.set()  # as if killed: no further signs of life
    os.utime(tmp_path / ".lock", (time.time() - 100,) * 2)
    FolderLock(tmp_path).release()


def test_what_was_made_for_nothing_goes(tmp_path):
    FolderLock(tmp_path / "a" / "b").release(unused=True)
    assert not (tmp_path / "a").exists()
    made = FolderLock(tmp_path / "a" / "b")
    (tmp_path / "a" / "file").touch()
    made.release(unused=True)
    assert (tmp_path / "a" / "file").exists()


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot be written .*another output="):
        FolderLock(tmp_path / "file" / "run")
