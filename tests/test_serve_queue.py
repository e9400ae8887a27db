"""The queue: leases, fencing, batches, back-pressure; many threads at once."""

from __future__ import annotations

import threading
import time

import pytest
from serving import new_job
from sqlalchemy import select, update

from videomaker.serve import migrate
from videomaker.serve.admission import Limits, Refused
from videomaker.serve.listing import Listing
from videomaker.serve.queue import KeyReused, Queue
from videomaker.serve.registry import Registry, WorkerState
from videomaker.serve.tables import videos


@pytest.fixture
def queue(any_database) -> Queue:
    database = any_database
    migrate.upgrade(database)
    return Queue(database, lease_seconds=30, max_attempts=3)


def row(queue, id):
    with queue.database.read() as connection:
        return connection.execute(select(videos).where(videos.c.id == id)).first()


def expire(queue, lease):
    with queue.database.write() as connection:
        connection.execute(update(videos).where(videos.c.lease == lease).values(lease_until=0.0))


def claim(queue, **options):
    return queue.claim("w", "m", **options)


def test_a_job_is_claimed_once_and_finished_once(queue):
    id, is_new = queue.submit(new_job())
    assert is_new
    claimed = claim(queue)
    assert [r.id for r in claimed.rows] == [id]
    assert claim(queue) is None
    assert queue.finish(claimed.lease, id, result={"files": {}})
    assert not queue.finish(claimed.lease, id, result={"files": {}})
    done = row(queue, id)
    assert (done.state, done.step, done.lease, done.attempt) == ("completed", 10, None, 1)


def test_whatever_a_job_ends_as_it_expires(any_database):
    """`keep_hours` holds for what was cancelled and what was lost, too: pictures of people are among it."""
    migrate.upgrade(any_database)
    queue = Queue(any_database, max_attempts=1, keep_seconds=100)
    ids = [queue.submit(new_job())[0] for _ in range(6)]
    made, failed, lost, running, released = (claim(queue) for _ in range(5))
    queue.finish(made.lease, made.rows[0].id, result={})
    queue.finish(failed.lease, failed.rows[0].id, error={"code": "x", "message": "y"})
    for claimed in (running, released):
        assert queue.cancel("ann", claimed.rows[0].id)
    queue.finish(running.lease, running.rows[0].id, result={})
    queue.release(released.lease)
    assert queue.cancel("ann", ids[5])  # while it waits
    expire(queue, lost.lease)
    assert queue.reap() == 1
    ended = [row(queue, id) for id in ids]
    assert [end.state for end in ended] == ["completed", *["failed"] * 5]
    assert all(end.expires == pytest.approx(end.finished + 100, abs=1) for end in ended)


def test_a_worker_past_its_lease_can_neither_renew_nor_finish(queue):
    id, _ = queue.submit(new_job())
    old = claim(queue)
    expire(queue, old.lease)
    assert queue.reap() == 1
    new = claim(queue)
    assert new.lease != old.lease
    assert queue.renew(old.lease, 3).held == frozenset()
    assert not queue.finish(old.lease, id, result={"mine": "old"})
    assert queue.finish(new.lease, id, result={"mine": "new"})
    assert row(queue, id).result == {"mine": "new"}


def test_a_job_that_loses_its_worker_too_often_fails_and_a_released_one_does_not_count(queue):
    id, _ = queue.submit(new_job())
    for _ in range(5):
        queue.release(claim(queue).lease)
    assert row(queue, id).attempt == 0
    for _ in range(3):
        expire(queue, claim(queue).lease)
        queue.reap()
    failed = row(queue, id)
    assert (failed.state, failed.error["code"]) == ("failed", "worker_lost")
    assert claim(queue) is None


def test_renewal_reports_progress_and_brings_the_cancel(queue):
    id, _ = queue.submit(new_job())
    claimed = claim(queue)
    assert queue.renew(claimed.lease, 4).held == {id}
    assert row(queue, id).step == 4
    assert queue.cancel("ann", id)
    answer = queue.renew(claimed.lease, 5)
    assert answer.held == answer.cancelled == {id}
    assert not queue.finish(claimed.lease, id, result={"files": {}})
    assert row(queue, id).error["code"] == "cancelled"
    assert row(queue, id).result is None


def test_cancel_is_the_owners_and_ends_what_waits_at_once(queue):
    id, _ = queue.submit(new_job())
    assert not queue.cancel("bob", id)
    assert queue.cancel("ann", id)
    assert row(queue, id).state == "failed"
    assert not queue.cancel("ann", id)


@pytest.mark.parametrize("end", ["release", "reap"])
def test_what_was_cancelled_does_not_come_back(queue, end):
    id, _ = queue.submit(new_job())
    claimed = claim(queue)
    queue.cancel("ann", id)
    if end == "release":
        queue.release(claimed.lease)
    else:
        expire(queue, claimed.lease)
        queue.reap()
    assert row(queue, id).error["code"] == "cancelled"


def test_batches_are_of_one_bucket_oldest_first_by_priority(queue):
    ids = [queue.submit(new_job(bucket=bucket))[0] for bucket in "aabab"]
    urgent, _ = queue.submit(new_job(bucket="c", priority=-1))
    assert [r.id for r in claim(queue, batch=lambda _: 4).rows] == [urgent]
    assert [r.id for r in claim(queue, batch=lambda _: 4).rows] == [ids[0], ids[1], ids[3]]
    assert [r.id for r in claim(queue, batch=lambda _: 1).rows] == [ids[2]]
    assert queue.claim("w", "another model") is None


def test_an_unfilled_batch_waits_for_company_but_not_for_ever(queue):
    queue.submit(new_job())
    assert claim(queue, batch=lambda _: 2, wait=0.3) is None
    time.sleep(0.35)
    assert len(claim(queue, batch=lambda _: 2, wait=0.3).rows) == 1


def test_after_a_lost_batch_each_job_runs_alone(queue):
    for _ in range(3):
        queue.submit(new_job())
    lost = claim(queue, batch=lambda _: 3)
    assert len(lost.rows) == 3
    expire(queue, lost.lease)
    queue.reap()
    queue.submit(new_job())
    assert [len(claim(queue, batch=lambda _: 3).rows) for _ in range(4)] == [1, 1, 1, 1]


def test_an_idempotency_key_finds_its_job_and_no_other_request(queue):
    first, _ = queue.submit(new_job(idempotency_key="k", fingerprint="f"))
    assert queue.submit(new_job(idempotency_key="k", fingerprint="f")) == (first, False)
    assert queue.submit(new_job(owner="bob", idempotency_key="k", fingerprint="f"))[1]
    with pytest.raises(KeyReused):
        queue.submit(new_job(idempotency_key="k", fingerprint="g"))


def test_a_clients_retry_finds_the_first_try_in_either_order(queue):
    first, _ = queue.submit(new_job(fingerprint="f"))
    assert queue.submit(new_job(fingerprint="f", client_retry=1)) == (first, False)
    twin, is_new = queue.submit(new_job(fingerprint="f"))
    assert is_new and twin != first  # wanted twice
    late, _ = queue.submit(new_job(fingerprint="g", client_retry=1))
    assert queue.submit(new_job(fingerprint="g")) == (late, False)
    assert queue.submit(new_job(fingerprint="f", client_retry=1), Limits(merge_retries=False))[1]


def test_back_pressure_tells_when_to_come_again(queue):
    limits = Limits(max_wait=5)
    for _ in range(6):
        queue.submit(new_job(cost=1.0), limits)
    with pytest.raises(Refused) as refused:
        queue.submit(new_job(cost=1.0), limits)
    assert 0 < refused.value.retry_after <= 1.5
    for name in ("a", "b"):
        Registry(queue.database).beat(WorkerState(name, "m", "cpu", "h", 1, ready=True))
    queue.submit(new_job(cost=1.0), limits)  # two workers: half the wait


def test_limits_are_of_one_owner(queue):
    for _ in range(2):
        queue.submit(new_job(), Limits(max_active=2))
    with pytest.raises(Refused):
        queue.submit(new_job(), Limits(max_active=2))
    queue.submit(new_job(owner="bob"), Limits(max_active=2))
    with pytest.raises(Refused) as refused:
        queue.submit(new_job(), Limits(max_per_hour=2))
    assert 3500 < refused.value.retry_after <= 3600


def test_threads_share_the_queue_without_losing_or_doubling(queue):
    ids = {queue.submit(new_job())[0] for _ in range(60)}
    done, lock = [], threading.Lock()

    def work():
        while claimed := claim(queue, batch=lambda _: 3):
            for r in claimed.rows:
                if queue.finish(claimed.lease, r.id, result={}):
                    with lock:
                        done.append(r.id)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == sorted(ids)


def test_submits_at_once_with_one_key_make_one_job(queue):
    results = []

    def send():
        results.append(queue.submit(new_job(idempotency_key="k", fingerprint="f"), Limits(max_wait=0)))

    threads = [threading.Thread(target=send) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id for id, _ in results}) == 1
    assert sum(is_new for _, is_new in results) == 1


def test_one_jobs_place_is_that_of_the_whole_list(queue):
    """A look at one job counts what is before it; a page ranks the queue: both tell the same."""
    listing = Listing(queue.database)
    Registry(queue.database).beat(WorkerState("w", "m", "cpu", "here", 1, ready=True))
    Registry(queue.database).beat(WorkerState("v", "m", "cpu", "here", 2, ready=True))
    kinds = [("m", 0, 2.0), ("m", 1, 3.0), ("n", 0, 5.0), ("m", 0, 7.0), ("n", 0, 1.0)]
    ids = [queue.submit(new_job(model=m, priority=p, cost=c))[0] for m, p, c in kinds]
    rows = listing.get_many(ids)
    together = listing.waits(rows.values())
    assert {id: listing.waits([row])[id] for id, row in rows.items()} == together
    assert [(together[id].position, together[id].eta) for id in ids] == [
        (0, 2.0),
        (2, 7.5),
        (0, 5.0),
        (1, 8.0),
        (1, 6.0),
    ]
