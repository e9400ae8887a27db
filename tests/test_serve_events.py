"""Streams of progress: nothing is told gone that is there, a database that is away silences nobody, links end."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from serving import client_of, make_state, make_worker, submit

from videomaker.serve import keys
from videomaker.serve.api import events
from videomaker.serve.api.videos import show_one


@pytest.fixture
def state(tmp_path):
    return make_state(tmp_path)


def ids(state, count):
    with client_of(state) as client:
        return [submit(client, str(index)).json()["id"] for index in range(count)]


async def heard(state, watcher, id, seconds, delay=0.0):
    """First lines of what a stream tells that begins after `delay`."""
    await asyncio.sleep(delay)
    lines = []

    async def listen():
        async for text in events._stream(state, watcher, show_one(state, id, None), None):
            lines.append(text.partition("\n")[0])

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(listen(), seconds)
    return lines


def test_a_stream_that_begins_during_a_look_is_not_told_that_its_video_is_gone(state, monkeypatch):
    first, second = ids(state, 2)
    watcher = events.Watcher(state)
    show = watcher._show
    monkeypatch.setattr(watcher, "_show", lambda some: [show(some), time.sleep(0.3)][0])

    async def both():
        return await asyncio.gather(heard(state, watcher, first, 1.0), heard(state, watcher, second, 1.0, delay=0.1))

    assert asyncio.run(both()) == [["event: video"], ["event: video"]]


def test_a_look_that_fails_is_tried_again_and_the_stream_kept_alive(state, monkeypatch):
    (id,) = ids(state, 1)
    watcher, looks = events.Watcher(state), []
    show = watcher._show

    def flaky(some):
        looks.append(some)
        if len(looks) < 3:
            raise OSError
        state.queue.cancel(state.listing.get(id).owner, id)
        return show(some)

    monkeypatch.setattr(watcher, "_show", flaky)
    monkeypatch.setattr(events, "AWAY_SECONDS", 0.2)
    monkeypatch.setattr(events, "SILENCE_SECONDS", 0.1)

    async def listen():
        stream = events._stream(state, watcher, show_one(state, id, None), None)
        return [text.partition("\n")[0] async for text in stream]

    lines = asyncio.run(asyncio.wait_for(listen(), 10))
    assert lines[0] == lines[-1] == "event: video" and ": still here" in lines


def test_a_link_gives_no_links_that_outlast_it(state, monkeypatch):
    owner = state.keys.create("ben")
    with client_of(state) as client:
        headers = {"authorization": f"Bearer {owner}"}
        video = submit(client, headers=headers).json()
        make_worker(state).work_once()
        link = video["links"]["events"]
        now = time.time()
        for hour in (0.9, 1.8, 2.7):
            monkeypatch.setattr(keys.time, "time", lambda hour=hour: now + 3600 * hour)
            answer = client.get(link)
            if answer.status_code == 403:
                break
            (data,) = [line for line in answer.text.splitlines() if line.startswith("data:")]
            links = json.loads(data[5:])["links"]
            assert client.get(links["video"]).status_code == 200
            link = links["events"]
        assert answer.status_code == 403 and client.get(links["video"]).status_code == 403
