"""Two servers and a worker apart, on one PostgreSQL and one S3 store: any of them answers any call, and any may go."""

from __future__ import annotations

import json
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import httpx2
import openai
import pytest
from server_process import WorkerProcess
from serving import ServerProcess, submit, wait_for

from videomaker.serve.config import load_config
from videomaker.serve.database import Database
from videomaker.serve.state import State

pytest.importorskip("psycopg")
pytestmark = pytest.mark.scale
LEASE = 2  # seconds


class Cluster:
    """What the replicas share, and the replicas."""

    def __init__(self, folder, postgres, object_store):
        self.settings = {
            "database": postgres.create(), **object_store.settings, "fake_seconds": 0.02, "lease_seconds": LEASE,
            "max_attempts": 50, "drain_seconds": 20,
        }  # fmt: skip
        self.folder = folder
        self.servers = [ServerProcess(folder / name, "--no-worker", **self.settings) for name in ("a", "b")]
        options = {"files_options": json.loads(self.settings["files_options"])}
        self.state = State(load_config(**{**self.settings, "data": folder, **options}))
        self.keys = {"ann": self.state.keys.create("ann"), "bob": self.state.keys.create("bob", max_per_hour=1)}

    def worker(self, **settings):
        return WorkerProcess(self.folder / "worker", **self.settings, **settings)

    def clients(self, owner="ann"):
        headers = {"authorization": f"Bearer {self.keys[owner]}"}
        return [server.client(headers=headers) for server in self.servers]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, postgres, object_store):
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), postgres, object_store)
    yield cluster
    for server in cluster.servers:
        server.stop(signal.SIGKILL)


@pytest.fixture(scope="module")
def worker(cluster):
    with cluster.worker() as worker:
        worker.wait_ready()
        yield worker


def test_made_by_one_followed_and_fetched_from_another(cluster, worker):
    one, other = cluster.clients()
    id = submit(one).json()["id"]
    with other.stream("GET", f"/v1/videos/{id}/events") as stream:
        assert '"completed"' in "".join(stream.iter_text())
    video = one.get(f"/v1/videos/{id}").json()
    link = other.get(video["links"]["video"], headers={"authorization": ""})  # signed by one, known to the other
    assert link.status_code == 307 and "X-Amz-Signature" in link.headers["location"]
    part = httpx2.get(link.headers["location"], headers={"range": "bytes=4-7"})
    assert (part.status_code, part.content, part.headers["content-type"]) == (206, b"ftyp", "video/mp4")
    assert other.head(f"/v1/videos/{id}/content", follow_redirects=True).status_code == 200
    for variant, mark in {"thumbnail": b"WEBP", "record": b"fake", "reference": b"PNG"}.items():
        answer = other.get(f"/v1/videos/{id}/content", params={"variant": variant})
        assert answer.status_code == 200 and mark in answer.content
    official = openai.OpenAI(base_url=f"{cluster.servers[1].address}/v1", api_key=cluster.keys["ann"])
    assert b"ftyp" in official.videos.download_content(id).read()
    assert other.delete(f"/v1/videos/{id}").json()["deleted"]
    assert one.get(f"/v1/videos/{id}").status_code == 404
    assert cluster.state.store.keys(f"videos/{id}") == []


def test_servers_keep_nothing_on_their_disks(cluster):
    assert {path.name for name in ("a", "b") for path in (cluster.folder / name).iterdir()} == {"server.log"}


def test_a_limit_and_an_idempotency_key_hold_over_all_servers(cluster):
    with ThreadPoolExecutor(10) as pool:
        sent = [pool.submit(submit, client, seed=str(i)) for i in range(5) for client in cluster.clients("bob")]
        statuses = sorted(future.result().status_code for future in sent)
        assert statuses == [200] + [429] * 9
        same = {"idempotency-key": "once"}
        again = [pool.submit(submit, client, headers=same, seed="1") for _ in range(5) for client in cluster.clients()]
        assert len({future.result().json()["id"] for future in again}) == 1


class Load(threading.Thread):
    """Submits to both servers, with the patience of any client, until told to stop."""

    def __init__(self, cluster):
        super().__init__(daemon=True)
        self.clients, self.end, self.ids, self.odd = cluster.clients(), threading.Event(), [], []
        self.start()

    def run(self):
        number = 0
        while not self.end.is_set():
            number += 1
            headers = {"idempotency-key": f"{id(self)}-{number}"}
            while not self.end.is_set():
                try:
                    answer = submit(
                        self.clients[number % 2], headers=headers, seed=str(number), num_inference_steps="3"
                    )
                except httpx2.TransportError:
                    continue
                if answer.status_code == 200:
                    self.ids.append(answer.json()["id"])
                    break
                if answer.status_code not in (429, 503) or not answer.headers["retry-after"]:
                    self.odd.append(answer.text)
                    return
                time.sleep(0.2)

    def stop(self):
        self.end.set()
        self.join(60)
        assert not self.odd
        return self.ids


def check_all_made_once(cluster, ids):
    assert ids
    other = cluster.clients()[1]
    assert {wait_for(other, id, 180)["status"] for id in ids} == {"completed"}
    rows = cluster.state.listing.get_many(ids)
    for id in ids:
        lease = rows[id].result["lease"]
        assert f"videos/{id}/{lease}/video.mp4" in cluster.state.store.keys(f"videos/{id}")


@pytest.mark.parametrize("crash", [False, True], ids=["restarted", "crashed"])
def test_a_database_that_restarts_loses_nothing(cluster, worker, postgres, crash):
    load = Load(cluster)
    time.sleep(2)
    postgres.stop(crash=crash)
    time.sleep(LEASE + 1)
    postgres.start()
    time.sleep(2)
    check_all_made_once(cluster, load.stop())


def test_a_connection_counts_once_it_answers():
    """PgBouncer takes connections while its database refuses logins, and says so at the first question."""
    import psycopg

    closed, answers = [], iter([psycopg.errors.ProtocolViolation("server login has been failing"), None])

    class Connection:
        def execute(self, statement):
            if error := next(answers):
                raise error

        def close(self):
            closed.append(self)

    database = Database("postgresql+psycopg://anna@127.0.0.1/videos", patience=5)
    dialect = SimpleNamespace(loaded_dbapi=psycopg, connect=lambda *_, **__: Connection())
    connection = database._connect(dialect, None, (), {})
    assert connection not in closed and len(closed) == 1
    assert not connection.autocommit  # as SQLAlchemy found it


def test_a_store_that_restarts_fails_no_job(cluster, worker, object_store):
    load = Load(cluster)
    time.sleep(2)
    object_store.stop()
    time.sleep(3)
    object_store.start()
    time.sleep(1)
    check_all_made_once(cluster, load.stop())


def test_a_worker_that_is_told_to_stop_finishes_and_one_without_work_goes_home(cluster, worker):
    client = cluster.clients()[0]
    id = submit(client, num_inference_steps="50", seed="77").json()["id"]
    wait_for(client, id, until=("in_progress",))
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(60) == 0
    assert wait_for(client, id, 1)["status"] == "completed"
    waiting = submit(client, seed="78").json()["id"]
    with cluster.worker(idle_exit=0.5) as batch_job:
        assert batch_job.process.wait(120) == 0
    assert wait_for(client, waiting, 1)["status"] == "completed"
