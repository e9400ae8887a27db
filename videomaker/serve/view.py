"""Rows as the API shows them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Row

from .listing import Wait
from .schema import Video
from .state import State


def show(state: State, rows: Sequence[Row]) -> list[Video]:
    """Jobs as the API answers them, with their places in the queue and links for players."""
    waits = state.listing.waits(rows)
    return [_show(state, row, waits.get(row.id)) for row in rows]


def _show(state: State, row: Row, wait: Wait | None) -> Video:
    request = row.request
    done = row.state == "completed"
    return Video(
        id=row.id,
        status=row.state,
        progress=100 if done else min(99, 100 * row.step // max(1, row.steps)),
        model=request["model"],
        prompt=request["prompt"],
        seconds=f"{request['num_frames'] / request['fps']:g}",
        size=f"{request['width']}x{request['height']}",
        created_at=int(row.created),
        completed_at=int(row.finished) if done else None,
        expires_at=None if row.expires is None else int(row.expires),
        error=row.error,
        queue_position=wait.position if wait and row.state == "queued" else None,
        eta_seconds=round(wait.eta, 1) if wait else None,
        step=row.step,
        steps=row.steps,
        num_references=len(request["references"]),
        signed=done and row.result.get("signed", False),
        cancel_requested=row.cancel_requested and row.state == "in_progress",
        links=_links(state, row.id, ("reference", *(row.result["files"] if done else ()), "events")),
        **{name: request[name] for name in _SAME},
    )


_SAME = (
    "seed", "num_frames", "fps", "num_inference_steps", "guidance_scale", "negative_prompt", "fit", "consent",
)  # fmt: skip


def _links(state: State, id: str, names: Iterable[str], expires: int | None = None) -> dict[str, str]:
    def link(name: str) -> str:
        path = "events?" if name == "events" else f"content?variant={name}&"
        return f"/v1/videos/{id}/{path}{state.signer.link(id, name, expires)}"

    return {name: link(name) for name in names}


def event(state: State, video: Video, link_ends: int | None) -> dict[str, Any]:
    """What a stream of progress tells of a video; one that was asked for by a link gives none that lasts longer."""
    told = video.model_dump(mode="json")
    return told if link_ends is None else {**told, "links": _links(state, video.id, video.links, link_ends)}
