"""`videomaker serve` as a process: ready, killed, stopped, restarted; every accepted job ends, once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from serving import ServerProcess, submit, wait_for
from typer.testing import CliRunner

from videomaker.cli import app
from videomaker.serve.config import load_config
from videomaker.serve.state import State
from videomaker.serve.supervisor import Order, Supervisor

LEASE = 2  # seconds, so that what a killed worker held comes back soon


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with ServerProcess(tmp_path_factory.mktemp("server"), fake_seconds=0.02, lease_seconds=LEASE) as server:
        server.wait_ready()
        yield server


def test_ready_and_a_video(server):
    with server.client() as client:
        assert client.get("/readyz").json()["ready"]
        id = submit(client).json()["id"]
        assert wait_for(client, id)["status"] == "completed"
        assert b"ftyp" in client.get(f"/v1/videos/{id}/content").content


def test_events_tell_every_state_in_order(server):
    with server.client() as client:
        id = submit(client, num_inference_steps="60").json()["id"]
        with client.stream("GET", f"/v1/videos/{id}/events") as stream:
            text = "".join(stream.iter_text())
    assert text.count("event: video") >= 3
    assert text.index('"in_progress"') < text.index('"completed"')


def test_a_worker_killed_in_mid_video_is_replaced_and_the_video_made(server):
    with server.client() as client:
        id = submit(client, num_inference_steps="100").json()["id"]
        wait_for(client, id, until=("in_progress",))
        os.kill(server.children()[0], signal.SIGKILL)
        assert wait_for(client, id, 60)["status"] == "completed"


def test_a_step_that_hangs_is_ended(tmp_path):
    # Longer than a busy machine takes to encode a video, which has no steps either.
    with ServerProcess(tmp_path, step_timeout=5) as server, server.client() as client:
        server.wait_ready()
        hung, next_one = submit(client, "HANG").json()["id"], submit(client, "a").json()["id"]
        assert wait_for(client, hung, 120)["error"]["code"] == "step_timeout"
        assert wait_for(client, next_one, 120)["status"] == "completed"


def test_kill_9_of_all_and_a_restart_ends_every_job_once(tmp_path):
    settings = {"fake_seconds": 0.02, "lease_seconds": LEASE}
    with ServerProcess(tmp_path, **settings) as server, server.client() as client:
        server.wait_ready()
        ids = [submit(client, seed=str(i)).json()["id"] for i in range(6)]
        children = [psutil.Process(pid) for pid in server.children()]
        wait_for(client, ids[1], until=("in_progress",))
        server.stop(signal.SIGKILL)
        assert psutil.wait_procs(children, 5)[1] == []  # they die with their parent
    with ServerProcess(tmp_path, **settings) as server, server.client() as client:
        assert {wait_for(client, id, 60)["status"] for id in ids} == {"completed"}
        assert len(client.get("/v1/videos", params={"limit": 100}).json()["data"]) == len(ids)
        server.stop()
    assert len(list((tmp_path / "files").rglob("video.mp4"))) == len(ids)


def states(folder, *ids):
    listing = State(load_config(data=folder)).listing
    return [listing.get(id).state for id in ids]


def test_sigterm_finishes_what_runs_and_leaves_the_rest_queued(tmp_path):
    with ServerProcess(tmp_path, fake_seconds=0.05, drain_seconds=20) as server, server.client() as client:
        server.wait_ready()
        running, waiting = (submit(client, seed=str(i), num_inference_steps="40").json()["id"] for i in range(2))
        wait_for(client, running, until=("in_progress",))
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert client.get("/readyz").status_code == 503
        assert submit(client).json()["error"]["code"] == "draining"
        assert server.process.wait(30) == 0
    assert states(tmp_path, running, waiting) == ["completed", "queued"]


def test_a_second_sigterm_gives_back_what_runs(tmp_path):
    with ServerProcess(tmp_path, fake_seconds=0.1) as server, server.client() as client:
        server.wait_ready()
        id = submit(client, num_inference_steps="100").json()["id"]
        wait_for(client, id, until=("in_progress",))
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert server.stop() == 0
    assert states(tmp_path, id) == ["queued"]


def test_a_worker_that_starts_while_all_are_told_to_stop_is_told_too(monkeypatch):
    begun = threading.Event()

    def slow_start(config):
        begun.set()
        time.sleep(0.5)
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], stdin=subprocess.PIPE, text=True)

    monkeypatch.setattr("videomaker.serve.supervisor._start", slow_start)
    supervisor = Supervisor([Order(load_config(renderer="fake"), "cpu")])
    supervisor.start()
    assert begun.wait(10)
    supervisor.stop(grace=5)
    assert supervisor.ended.wait(10) and supervisor.pids() == []


def test_an_open_address_needs_keys_and_a_taken_port_is_told(tmp_path, server):
    port = server.address.rsplit(":", 1)[1]
    for options, word in ((["--host", "0.0.0.0"], "keys create"), (["--port", port], f"--port {port}")):
        refused = CliRunner().invoke(app, ["serve", "--data", str(tmp_path), *options])
        assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1) and word in refused.stderr


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_files_that_cannot_be_kept_end_the_start(tmp_path, command):
    settings = tmp_path / "videomaker.toml"
    settings.write_text(
        '[files_options]\nendpoint = "http://127.0.0.1:9"\naccess_key_id = "a"\nsecret_access_key = "b"\n'
    )
    options = ["--renderer", "fake", "--data", str(tmp_path / "data"), "--config", str(settings)]
    refused = CliRunner().invoke(app, [command, *options, "--files", "s3://bucket/files"])
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "files s3://bucket/files do not answer" in refused.stderr
