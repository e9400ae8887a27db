"""What the benchmarks of the queue share: services with the fake renderer, jobs put straight into the queue."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from server_process import PICTURE

from videomaker.serve import migrate
from videomaker.serve.accept import Call, accept
from videomaker.serve.admission import NO_LIMITS, Limits
from videomaker.serve.config import load_config
from videomaker.serve.keys import LOCAL
from videomaker.serve.logs import configure_logs
from videomaker.serve.models import Bucket
from videomaker.serve.queue import NewJob
from videomaker.serve.schema import VideoRequest
from videomaker.serve.state import State

_ONLY: dict[int, dict[str, Any]] = {}  # of each state, the request that its jobs share


def fake_state(folder: Path, **settings: Any) -> State:
    """Services over fresh tables; nothing is refused."""
    free = {"max_wait": float("inf"), "max_active": 10**9, "max_attempts": 50, "log_level": "error"}
    state = State(load_config(data=folder, renderer="fake", **{**free, **settings}))
    configure_logs(state.config)
    migrate.upgrade(state.database)
    return state


def put_job(state: State, seed: int, owner: str = LOCAL.id, limits: Limits = NO_LIMITS) -> str:
    """A small video in the queue; the first is accepted as any request, the others show its picture."""
    if id(state) not in _ONLY:
        asked = VideoRequest(prompt="a creature", size="16x16", num_frames=2, num_inference_steps=2, seed=seed)
        first, _ = accept(state, asked, [PICTURE.read_bytes()], Call(LOCAL, "bench"))
        _ONLY[id(state)] = state.listing.get(first).request
        return first
    request = {**_ONLY[id(state)], "seed": seed}
    job_id = f"video_bench_{uuid.uuid4().hex}"
    job = NewJob(job_id, owner, request["model"], str(Bucket.of(request)), 2, 0.1, request, job_id)
    return state.queue.submit(job, limits)[0]
