"""bench/serve.py in small: the promises that it checks at length."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parent.parent / "bench" / "serve.py"


def run(*arguments: object) -> dict:
    command = [sys.executable, str(BENCH), *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_no_job_is_lost_or_made_twice_while_workers_are_killed():
    report = run("queue", "--jobs", 80, "--workers", 2, "--kill-every", 1.5)
    assert (report["completed"], report["lost"], report["with_two_results"]) == (80, 0, 0)
    assert report["kills"] >= 1


def test_hostile_requests_get_an_answer_and_leave_nothing():
    report = run("hostile", "--requests", 120)
    assert (report["server_errors"], report["files_left"], report["others_seen"]) == (0, 0, 0)


def test_a_server_killed_at_random_moments_ends_every_job():
    report = run("restarts", "--times", 2)
    assert report["accepted"] == report["completed"] == report["result_files"]
