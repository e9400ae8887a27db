"""All at once: PostgreSQL, an S3 store and Ray; the embedded model, the official client, a killed worker."""

from __future__ import annotations

import json
import os
import secrets
import signal
import tempfile
import time

import openai
import pytest
from serving import PICTURE

from videomaker.serve.config import load_config
from videomaker.serve.registry import WorkerState
from videomaker.serve.scaling import Load, QueuedSeconds, wanted_workers
from videomaker.serve.state import State

LEASE = 3  # seconds


def test_workers_are_wanted_by_the_seconds_that_wait_and_kept_while_they_work():
    def wanted(*loads, batch=1):
        return wanted_workers([Load(*load) for load in loads], batch=batch, target_seconds=60)

    assert wanted() == wanted((0, 0, 0.0)) == 0
    assert wanted((1, 0, 1.0)) == 1  # a short job, too
    assert wanted((100, 0, 600.0)) == 10
    assert wanted((50, 0, 300.0), (50, 0, 300.0)) == 10  # over buckets
    assert wanted((2, 0, 6000.0)) == 2  # no more than there are jobs
    assert wanted((2, 0, 6000.0), batch=2) == 1
    assert wanted((0, 3, 0.0)) == 3
    assert wanted((10, 3, 60.0)) == 4


def test_the_policy_asks_the_database_also_when_there_is_no_worker(tmp_path, any_database):
    from serving import new_job

    from videomaker.serve import migrate
    from videomaker.serve.queue import Queue

    class Context:
        target_num_replicas, capacity_adjusted_min_replicas, capacity_adjusted_max_replicas = 1, 0, 4

    migrate.upgrade(any_database)
    url = any_database.engine.url.render_as_string(hide_password=False)
    policy = QueuedSeconds({"database": url, "data": str(tmp_path)}, target_seconds=60)
    queue, model = Queue(any_database), policy._state.config.name
    policy.look()
    assert policy(Context) == (0, {})
    for cost in (50.0, 50.0, 50.0):
        queue.submit(new_job(model=model, cost=cost))
    queue.submit(new_job(model="another", cost=5000.0))
    policy.look()
    assert policy(Context) == (3, {})
    for _ in range(9):
        queue.submit(new_job(model=model, cost=500.0))
    policy.look()
    assert policy(Context) == (4, {})
    queue.claim("w", model)
    policy._state.registry.beat(WorkerState("w", model, "cpu", "h", 1))
    policy._wanted = None  # not seen yet: as it is
    assert policy(Context) == (1, {})


def start_ray(tries=3, **options):
    """A local Ray; its own patience, of half a minute, is short for a busy machine."""
    import ray

    for left in reversed(range(tries)):
        try:
            ray.init("local", **options)
            return
        except Exception as error:  # of its own start, before anything of ours
            ray.shutdown()
            if not left:
                pytest.skip(f"Ray does not start here: {str(error)[:200]}")


@pytest.fixture
def cluster(postgres, object_store, monkeypatch):
    """A local Ray with the application; the state of its database and files, and its address."""
    ray = pytest.importorskip("ray")
    from ray import serve
    from services import free_port

    from videomaker.serve.ray_app import build

    settings = {
        "database": postgres.create(), **object_store.settings, "lease_seconds": LEASE, "devices": ["cpu"],
        "files_options": json.loads(object_store.settings["files_options"]), "drain_seconds": 5,
    }  # fmt: skip
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "90")  # of a busy machine
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))  # or one is left in the user's home
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="vm-ray-", ignore_cleanup_errors=True) as folder:
        options = {"num_cpus": 4, "include_dashboard": False, "object_store_memory": 80 * 2**20, "_temp_dir": folder}
        start_ray(log_to_driver=False, configure_logging=False, **options)
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            serve.run(build({"config": settings, "min_workers": 1, "max_workers": 1}), route_prefix="/")
            yield State(load_config(**settings)), f"http://127.0.0.1:{port}"
        finally:
            serve.shutdown()
            ray.shutdown()


@pytest.mark.scale
@pytest.mark.timeout(900)
def test_a_video_is_made_though_its_worker_is_killed(cluster):
    state, address = cluster
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none needed at loopback")
    made = client.videos.create(
        prompt="a big creature hopping to the left over a green meadow",
        input_reference=("moss.png", PICTURE.read_bytes()),
        extra_body={"seed": 7, "num_inference_steps": 100},
    )
    victim = wait_for_work(state, made.id)
    os.kill(victim.pid, signal.SIGKILL)
    video = client.videos.poll(made.id, poll_interval_ms=500)
    assert video.error is None
    assert video.status == "completed"
    row = state.listing.get(made.id)
    assert row.attempt == 2 and row.worker != victim.id
    assert b"ftyp" in client.videos.download_content(made.id).read()
    record = client.videos.download_content(made.id, variant="record").json()
    assert record["seed"] == 7


def wait_for_work(state, id, seconds=120):
    """The worker that makes a video, some steps into it."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        row = state.listing.get(id)
        if row.state == "in_progress" and row.step >= 2:
            return next(worker for worker in state.registry.alive() if worker.id == row.worker)
        time.sleep(0.05)
    raise AssertionError(f"the video is {row.state} at step {row.step}")
