"""The worker: what becomes of jobs that fail, are cancelled, run out of memory, or lose their lease."""

from __future__ import annotations

import sys
import threading
import time

import pytest
from serving import client_of, make_state, make_worker, submit
from sqlalchemy import update
from sqlalchemy.exc import OperationalError

from videomaker.serve.fake import FakeRenderer
from videomaker.serve.lease import Stopped
from videomaker.serve.renderer import OutOfMemory
from videomaker.serve.results import make_files
from videomaker.serve.tables import videos
from videomaker.serve.worker import EXIT_HANGS


@pytest.fixture
def state(tmp_path):
    return make_state(tmp_path, batch=3, batch_wait=0)


def submitted(state, *prompts, **fields):
    with client_of(state) as client:
        return [submit(client, prompt, seed=str(i), **fields).json()["id"] for i, prompt in enumerate(prompts)]


def ends(state, ids):
    rows = state.listing.get_many(ids)
    return ["completed" if rows[id].state == "completed" else rows[id].error["code"] for id in ids]


def test_a_failure_is_its_own_jobs(state):
    ids = submitted(state, "a", "FAIL", "b")
    make_worker(state).work_once()
    assert ends(state, ids) == ["completed", "render_failed", "completed"]


def test_out_of_memory_fails_one_job_alone_after_its_batch(state):
    ids = submitted(state, "a", "OOM", "b")
    make_worker(state).work_once()
    assert ends(state, ids) == ["completed", "out_of_memory", "completed"]


def test_an_error_nobody_expected_is_retried_alone_and_told(state, monkeypatch):
    render = FakeRenderer.render

    def broken(self, jobs, size, on_step):
        if any(job.request["prompt"] == "bad" for job in jobs):
            raise ZeroDivisionError
        return render(self, jobs, size, on_step)

    monkeypatch.setattr(FakeRenderer, "render", broken)
    ids = submitted(state, "a", "bad", "b")
    make_worker(state).work_once()
    assert ends(state, ids) == ["completed", "render_failed", "completed"]


def test_memory_that_suffices_for_one_makes_the_batch_one_by_one(state, monkeypatch):
    render, sizes = FakeRenderer.render, []

    def small(self, jobs, size, on_step):
        sizes.append(size)
        if size > 1:
            raise OutOfMemory("no")
        return render(self, jobs, size, on_step)

    monkeypatch.setattr(FakeRenderer, "render", small)
    ids = submitted(state, "a", "b")
    make_worker(state).work_once()
    assert (ends(state, ids), sizes) == (["completed"] * 2, [3, 1, 1])


def in_thread(worker):
    thread = threading.Thread(target=worker.work_once)
    thread.start()
    return thread


def wait_for_step(state, id):
    for _ in range(200):
        row = state.listing.get(id)
        if row.state == "in_progress" and row.step:
            return
        time.sleep(0.05)
    raise AssertionError("no step came")


def test_cancel_stops_the_loop_and_delete_leaves_no_file(tmp_path):
    state = make_state(tmp_path, fake_seconds=0.1)
    for end in ("cancel", "delete"):
        (id,) = submitted(state, "a", num_inference_steps="100")
        thread, start = in_thread(make_worker(state)), time.monotonic()
        wait_for_step(state, id)
        with client_of(state) as client:
            if end == "cancel":
                assert client.post(f"/v1/videos/{id}/cancel").json()["cancel_requested"]
            else:
                assert client.delete(f"/v1/videos/{id}").status_code == 200
        thread.join(10)
        assert not thread.is_alive() and time.monotonic() - start < 9  # all steps would take ten
        if end == "cancel":
            assert ends(state, [id]) == ["cancelled"]
            state.listing.remove(id)
            state.store.delete(f"videos/{id}")
        assert state.store.keys("videos") == []


def test_stop_gives_the_batch_back(tmp_path):
    state = make_state(tmp_path, fake_seconds=0.1)
    (id,) = submitted(state, "a", num_inference_steps="100")
    worker = make_worker(state)
    thread = in_thread(worker)
    wait_for_step(state, id)
    worker.stop(0)
    thread.join(10)
    row = state.listing.get(id)
    assert (row.state, row.attempt) == ("queued", 0)


def test_a_result_under_a_lost_lease_is_thrown_away(state, monkeypatch):
    (id,) = submitted(state, "a")
    render = FakeRenderer.render

    def slow(self, jobs, size, on_step):
        made = render(self, jobs, size, on_step)
        with state.database.write() as connection:  # as if the worker had been stopped past its lease
            connection.execute(update(videos).values(lease_until=0.0))
        state.queue.reap()
        return made

    monkeypatch.setattr(FakeRenderer, "render", slow)
    make_worker(state).work_once()
    assert state.listing.get(id).state == "queued"
    assert [key.rsplit("/", 1)[1] for key in state.store.keys("videos")] == ["reference-0.upload"]
    monkeypatch.undo()
    make_worker(state).work_once()
    row = state.listing.get(id)
    assert row.state == "completed" and all(row.result["lease"] in f["key"] for f in row.result["files"].values())


def test_a_store_that_is_away_fails_no_job(state, monkeypatch):
    (id,) = submitted(state, "a")
    worker = make_worker(state)
    monkeypatch.setattr("videomaker.serve.worker.PATIENCE", -1)
    monkeypatch.setattr(state.store, "put", lambda *_: (_ for _ in ()).throw(OSError("away")))
    monkeypatch.setattr("videomaker.serve.worker.STORE_SECONDS", 0)
    worker.work_once()
    assert (state.listing.get(id).state, state.listing.get(id).attempt) == ("queued", 0)
    monkeypatch.undo()
    worker.work_once()
    assert ends(state, [id]) == ["completed"]


def test_a_finished_video_waits_for_the_store_and_the_database(state, monkeypatch):
    (id,) = submitted(state, "a")
    put, finish, tries, renders = state.store.put, state.queue.finish, [], []
    render = FakeRenderer.render

    def flaky(call, error):
        def tried(*arguments, **options):
            tries.append(call)
            if tries.count(call) < 3:
                raise error
            return call(*arguments, **options)

        return tried

    monkeypatch.setattr(FakeRenderer, "render", lambda *args: renders.append(1) or render(*args))
    monkeypatch.setattr(state.store, "put", flaky(put, OSError("away")))
    monkeypatch.setattr(state.queue, "finish", flaky(finish, OperationalError("", {}, Exception("away"))))
    monkeypatch.setattr("videomaker.serve.lease.AGAIN_SECONDS", 0)
    make_worker(state).work_once()
    assert ends(state, [id]) == ["completed"] and renders == [1] and tries.count(finish) == 3


def test_a_reference_that_is_gone_fails_its_job_alone(state):
    lost, kept = submitted(state, "a", "b")
    state.store.delete(f"videos/{lost}")
    make_worker(state).work_once()
    assert ends(state, [lost, kept]) == ["reference_lost", "completed"]


def test_cost_is_learnt_and_told(state):
    submitted(state, "a")
    worker = make_worker(state)
    worker.work_once()
    worker._beat()
    (row,) = state.registry.alive()
    (bucket,) = row.seconds
    assert state.registry.cost(state.model.name, bucket) == row.seconds[bucket] < 10
    assert state.registry.cost(state.model.name, "another") == 10
    with client_of(state) as client:
        text = client.get("/metrics").text
    assert f'videomaker_video_seconds_count{{bucket="{bucket}",phase="render"' in text
    assert "videomaker_batch_fill_total" in text and "videomaker_http_requests_total" in text


def test_the_next_batch_is_made_while_one_is_published(tmp_path, monkeypatch):
    state = make_state(tmp_path, batch=1, batch_wait=0)
    ids, rendered, stored = submitted(state, "a", "b", "c"), [], threading.Event()
    render, put = FakeRenderer.render, state.store.put
    monkeypatch.setattr(FakeRenderer, "render", lambda *args: rendered.append(1) or render(*args))
    monkeypatch.setattr(state.store, "put", lambda *args: stored.wait(30) and put(*args))
    worker = make_worker(state)
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while len(rendered) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(0.3)
    assert len(rendered) == 2  # the third waits until there is room for its result
    assert {row.state for row in state.listing.get_many(ids[:2]).values()} == {"in_progress"}
    stored.set()
    while "queued" in {row.state for row in state.listing.get_many(ids).values()} and time.monotonic() < until:
        time.sleep(0.02)
    worker.stop(10)
    thread.join(20)
    assert not thread.is_alive() and ends(state, ids) == ["completed"] * 3


def test_a_fault_in_publishing_ends_the_worker_aloud(tmp_path, monkeypatch):
    state = make_state(tmp_path, batch_wait=0)
    submitted(state, "a")
    monkeypatch.setattr("videomaker.serve.worker.store_files", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_worker(state).run()


def test_what_cannot_be_checked_or_encoded_fails_alone_and_is_not_shown(state, monkeypatch):
    ids = submitted(state, "unchecked", "a", "uncoded")
    worker = make_worker(state)
    worker._check = lambda request, frames: 1 / 0 if request["prompt"] == "unchecked" else None

    def make(made, request, *rest):
        return 1 / 0 if request["prompt"] == "uncoded" else make_files(made, request, *rest)

    monkeypatch.setattr("videomaker.serve.worker.make_files", make)
    assert worker.work_once()
    assert ends(state, ids) == ["check_failed", "completed", "encode_failed"]
    assert [key for key in state.store.keys(f"videos/{ids[0]}") if "reference-" not in key] == []


def test_a_gpu_that_does_not_tell_its_memory_is_no_reason_to_end(state, monkeypatch):
    """As a slice of an H100 (MIG) to a user without rights."""

    class Untold:
        def __getattr__(self, name):
            if name == "nvmlDeviceGetMemoryInfo":
                raise RuntimeError("Not Supported")
            return lambda *_: 1

    monkeypatch.setitem(sys.modules, "pynvml", Untold())
    make_worker(state)._beat()
    (row,) = state.registry.alive()
    assert row.stats["memory"] == []


def test_beats_go_on_whatever_fails(state, monkeypatch):
    worker, beats = make_worker(state), threading.Semaphore(0)
    monkeypatch.setattr("videomaker.serve.worker.BEAT_SECONDS", 0.01)
    monkeypatch.setattr(worker, "_beat", lambda: [beats.release(), 1 / 0])
    threading.Thread(target=worker._beat_always, daemon=True).start()
    assert all(beats.acquire(timeout=10) for _ in range(3))


def test_a_worker_that_hangs_ends_while_the_database_is_away(state, monkeypatch):
    submitted(state, "a")
    worker, statuses = make_worker(state), []
    claimed = state.queue.claim(worker.id, state.model.name)
    monkeypatch.setattr(
        state.queue, "finish", lambda *_, **__: (_ for _ in ()).throw(OperationalError("", {}, OSError()))
    )
    monkeypatch.setattr("videomaker.serve.worker.os._exit", statuses.append)
    worker._hangs(claimed)
    assert statuses == [EXIT_HANGS]


def test_a_database_that_is_away_while_a_batch_is_given_back_keeps_no_lease(state, monkeypatch):
    submitted(state, "a")
    worker = make_worker(state)
    monkeypatch.setattr(FakeRenderer, "render", lambda *_: (_ for _ in ()).throw(Stopped))
    monkeypatch.setattr(state.queue, "release", lambda *_: (_ for _ in ()).throw(OperationalError("", {}, Exception())))
    with pytest.raises(OperationalError):
        worker.work_once()
    assert not any(thread.name == "lease" for thread in threading.enumerate())
