"""Progress as server-sent events. All streams of a process share one look at the database."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import structlog
from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from videomaker.errors import first_line

from ..problems import ApiError
from ..schema import Video
from ..state import State
from ..view import event, show
from .access import StateOf, find_owner, link_end
from .videos import VideoId, show_one

log = structlog.get_logger("videomaker.serve.http")
router = APIRouter(prefix="/v1/videos", tags=["videos"])
POLL_SECONDS = 0.25
AWAY_SECONDS = 1.0  # until a look that failed is tried again
SILENCE_SECONDS = 15  # after which a comment keeps proxies from cutting the stream
MAX_STREAMS = 1000


class Watcher:
    """Looks at the jobs that anybody watches, at intervals, while there are any."""

    def __init__(self, state: State):
        self.state = state
        self._watched: Counter[str] = Counter()
        self._seen: frozenset[str] = frozenset()  # by the newest look, and what it found of them
        self._videos: dict[str, Video] = {}
        self._looked = asyncio.Condition()
        self._task: asyncio.Task | None = None

    @contextlib.contextmanager
    def watching(self, id: str) -> Iterator[None]:
        """Within it `next` is kept up to date for a job."""
        self._watched[id] += 1
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look())
        try:
            yield
        finally:
            self._watched[id] -= 1
            if not self._watched[id]:
                del self._watched[id]

    @property
    def streams(self) -> int:
        """How many watch."""
        return self._watched.total()

    async def next(self, last: Video) -> Video | None:
        """The video at the next look, `last` where that look did not see it; None when it is gone."""
        async with self._looked:
            await self._looked.wait()
        return self._videos.get(last.id) if last.id in self._seen else last

    async def _look(self) -> None:
        while self._watched:
            ids, pause = list(self._watched), POLL_SECONDS
            try:
                self._videos, self._seen = await run_in_threadpool(self._show, ids), frozenset(ids)
            except Exception as error:  # the database is away, say: streams are kept alive, the next look tells more
                log.warning("events not seen", kind=type(error).__name__, error=first_line(error))
                self._seen, pause = frozenset(), AWAY_SECONDS
            async with self._looked:
                self._looked.notify_all()
            await asyncio.sleep(pause)

    def _show(self, ids: list[str]) -> dict[str, Video]:
        """All at once: the queue is looked through once for all streams."""
        rows = self.state.listing.get_many(ids)
        return {video.id: video for video in show(self.state, list(rows.values()))}


@router.get("/{id}/events", response_class=StreamingResponse)
async def events(request: Request, state: StateOf, id: VideoId) -> StreamingResponse:
    """The video each time that it changes, as `event: video`; ends with the one that is completed or failed."""
    watcher: Watcher = request.app.state.watcher
    first, link_ends = await run_in_threadpool(_find, request, state, id)
    if watcher.streams >= MAX_STREAMS:
        raise ApiError(429, "too many streams: poll the video instead", code="too_many_streams", retry_after=10)
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(_stream(state, watcher, first, link_ends), media_type="text/event-stream", headers=headers)


def _find(request: Request, state: State, id: str) -> tuple[Video, int | None]:
    link_ends = link_end(request, id, "events")
    owner = find_owner(request).id if link_ends is None else None
    return show_one(state, id, owner), link_ends


async def _stream(state: State, watcher: Watcher, first: Video, link_ends: int | None) -> AsyncIterator[str]:
    told, spoke = None, time.monotonic()
    video: Video | None = first
    with watcher.watching(first.id):
        while video is not None:
            told, before = event(state, video, link_ends), told
            if told != before:
                spoke = time.monotonic()
                yield f"event: video\ndata: {json.dumps(told)}\n\n"
            elif time.monotonic() - spoke >= SILENCE_SECONDS:
                spoke = time.monotonic()
                yield ": still here\n\n"
            if video.status in ("completed", "failed") or state.draining:
                return
            video = await watcher.next(video)
    yield f"event: deleted\ndata: {json.dumps({'id': first.id})}\n\n"
