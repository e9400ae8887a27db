"""What refuses or ends work: losses that jump, signals, lost launchers."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest
from videomaker.train.config import GuardConfig
from videomaker.train.guards import LossGuard


def test_the_guard_objects_to_nan_and_spikes_only():
    guard = LossGuard(GuardConfig(spike_factor=3.0, spike_window=4, max_skipped=2))
    assert guard.objection(float("nan")) and guard.objection(float("inf"))
    assert not guard.objection(100.0)  # nothing known yet
    for loss in (1.0, 2.0, 1.0, 1.0):
        guard.accept(loss)
    assert not guard.objection(5.9)
    assert "over 3 times" in guard.objection(6.1)
    again = LossGuard(guard.settings)
    again.load_state_dict(json.loads(json.dumps(guard.state_dict())))
    assert again.state_dict() == guard.state_dict()
    guard.reject()
    assert not guard.exhausted
    guard.reject()
    assert guard.exhausted


RANK = """
import sys, threading
from videomaker.train.guards import EndAtOnce, Launcher, StopRequest, Watchdog
stop = StopRequest()
if sys.argv[1] == "loading":
    with EndAtOnce(Launcher()):
        print("ready", flush=True)
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()  # as a library that waits for a lost peer: no handler of Python's ends this
else:
    with Watchdog(0, stop):
        print("ready", flush=True)
        while not stop.reason:
            threading.Event().wait(0.1)
        print("stopped:", stop.reason, flush=True)
"""
# Stands for the outer `deepspeed`, which has a child that has the ranks.
OUTER = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', *sys.argv[1:]]).returncode)"
INNER = """
import os, subprocess, sys
subprocess.run([sys.executable, *sys.argv[1:]], env={**os.environ, "CROSS_SIZE": "1"})
"""


def start(*command):
    return subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_while_loading_ends_within_seconds(number, code):
    process = start("-c", RANK, "loading")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.wait(timeout=5) == code
    assert f"stopped while loading, nothing was changed: {number.name}" in process.stdout.read()


@pytest.mark.parametrize("phase", ["loading", "training"])
def test_ranks_notice_that_the_outer_launcher_was_killed(phase, tmp_path):
    outer = tmp_path / "deepspeed"
    outer.write_text(OUTER)
    process = start(str(outer), INNER, "-c", RANK, phase)
    try:
        assert process.stdout.readline() == "ready\n"
        process.kill()
        rest = process.stdout.read()  # ends when the last of them does
        assert "the launcher is gone" in rest
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
