"""All at once: PostgreSQL, an S3 store and Ray; two models, the official client, a killed worker."""

from __future__ import annotations

import json
import os
import signal
import time

import openai
import pytest
from serving import PICTURE

from videomaker.serve.config import load_config
from videomaker.serve.registry import WorkerState
from videomaker.serve.scaling import Load, QueuedSeconds, wanted_workers
from videomaker.serve.state import State
from videomaker.serve.store import connect

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


@pytest.fixture(scope="module")
def models(object_store, tmp_path_factory):
    """The embedded model, and a tiny one in the object store with a LoRA of this machine."""
    import obstore
    from safetensors.torch import save_file
    from tiny import tiny_lora, tiny_pipeline

    folder = tmp_path_factory.mktemp("models")
    pipe = tiny_pipeline()
    pipe.save_pretrained(folder / "owl")
    save_file(tiny_lora(pipe), folder / "ink.safetensors")
    url = f"{object_store.settings['files']}/models/owl"
    store = connect(url, json.loads(object_store.settings["files_options"]), 10)
    for path in filter(os.path.isfile, (folder / "owl").rglob("*")):
        obstore.put(store, str(path.relative_to(folder / "owl")), path.read_bytes())
    lora = {"name": "ink", "file": str(folder / "ink.safetensors"), "scale": 0.5}
    return [{"model": "default"}, {"model": url, "loras": [lora]}]


@pytest.fixture(scope="module")
def application(ray_cluster, postgres, object_store, models, tmp_path_factory):
    """The server on Ray, its two models warm: the state of its database and files, and its address."""
    from ray import serve
    from services import free_port

    from videomaker.serve.ray_app import build

    settings = {
        "database": postgres.create(), **object_store.settings, "lease_seconds": LEASE, "devices": ["cpu"],
        "files_options": json.loads(object_store.settings["files_options"]), "drain_seconds": 5, "models": models,
        "data": str(tmp_path_factory.mktemp("data")),
    }  # fmt: skip
    port = free_port()
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(build({"config": settings, "min_workers": 1, "max_workers": 1}), route_prefix="/")
        yield State(load_config(**settings)), f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()


@pytest.fixture(scope="module")
def client(application):
    return openai.OpenAI(base_url=f"{application[1]}/v1", api_key="none needed at loopback")


def create(client, model, steps, **fields):
    return client.videos.create(
        model=model,
        prompt="a big creature hopping to the left over a green meadow",
        input_reference=("moss.png", PICTURE.read_bytes()),
        extra_body={"seed": 7, "num_inference_steps": steps, **fields},
    )


def made(client, id):
    video = client.videos.poll(id, poll_interval_ms=500)
    assert video.error is None
    assert video.status == "completed"
    assert b"ftyp" in client.videos.download_content(id).read()
    return client.videos.download_content(id, variant="record").json()


@pytest.mark.scale
@pytest.mark.timeout(900)
def test_two_models_and_a_lora_each_by_its_own_workers(application, client):
    """One of the models lies in the object store; the interface takes its configurations alone."""
    state, _ = application
    told = {model.id: model for model in client.models.list()}
    assert list(told) == ["videomaker-default", "owl", "ink"]
    assert told["ink"].parent == "owl" and all(model.ready for model in told.values())
    tiny = {"size": "32x32", "num_frames": 3}
    ids = [
        create(client, name, 2, **more).id for name, more in (("videomaker-default", {}), ("owl", tiny), ("ink", tiny))
    ]
    records = [made(client, id) for id in ids]
    default, owl, ink = (state.listing.get(id) for id in ids)
    assert owl.worker == ink.worker != default.worker
    assert len({row.bucket for row in (default, owl, ink)}) == 3
    assert records[1]["components_sha256"] != records[2]["components_sha256"]
    assert [len(record["model"]["loras"]) for record in records] == [0, 0, 1]
    copies = {path.name.split("-")[1]: path for path in (state.config.data / "models").iterdir()}
    assert not list(copies["facts"].rglob("*.safetensors"))
    assert list(copies["model"].rglob("*.safetensors"))


@pytest.mark.scale
@pytest.mark.timeout(900)
def test_a_video_is_made_though_its_worker_is_killed(application, client):
    state, _ = application
    video = create(client, "videomaker-default", 100)
    victim = wait_for_work(state, video.id)
    os.kill(victim.pid, signal.SIGKILL)
    record = made(client, video.id)
    assert record["seed"] == 7
    row = state.listing.get(video.id)
    assert row.attempt == 2 and row.worker != victim.id


def wait_for_work(state, id, seconds=120):
    """The worker that makes a video, some steps into it."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        row = state.listing.get(id)
        if row.state == "in_progress" and row.step >= 2:
            return next(worker for worker in state.registry.alive() if worker.id == row.worker)
        time.sleep(0.05)
    raise AssertionError(f"the video is {row.state} at step {row.step}")
