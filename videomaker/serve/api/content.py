"""The files of a video, whole or a range of them, from wherever they lie."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse, Response, StreamingResponse

from .. import pictures
from ..problems import ApiError, not_found
from ..state import State
from .access import StateOf, find_owner, link_end
from .videos import VideoId

router = APIRouter(prefix="/v1/videos", tags=["videos"])
Variant = Literal["video", "thumbnail", "spritesheet", "record", "reference"]
LINK_SECONDS = 300  # of a link into an object store
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_SUFFIXES = {"video/mp4": "mp4", "image/webp": "webp", "image/jpeg": "jpg", "application/json": "json"}


@router.head("/{id}/content", include_in_schema=False)
@router.get("/{id}/content", response_class=Response)
async def content(
    request: Request,
    state: StateOf,
    id: VideoId,
    variant: Variant = "video",
    index: Annotated[int, Query(ge=0, le=15, description="Which picture, for variant=reference.")] = 0,
) -> Response:
    """The video (mp4), a thumbnail (webp), a spritesheet (jpg), the record (json) or a reference (png).

    Ranges are served, so that players can seek. A signed link of the video's `links` needs no key. Where files
    lie in an object store, the answer to `variant=video` is a redirect to a link that the store answers.
    """
    row = await run_in_threadpool(_find, request, state, id, variant)
    if variant == "reference":
        return await run_in_threadpool(_reference, state, row.request, index)
    if row.state == "failed":
        raise ApiError(400, f"the video failed ({row.error['code']}): there is no {variant}", code="video_failed")
    if row.state != "completed":
        raise ApiError(400, f"the video is {row.state}: there is no {variant} yet", code="video_not_ready")
    file = row.result["files"][variant]
    headers = {
        "content-type": file["type"],
        "content-disposition": f'inline; filename="{id}.{_SUFFIXES[file["type"]]}"',
        "accept-ranges": "bytes",
        "etag": f'"{file["sha256"]}"',
        "cache-control": "private, max-age=3600",
    }
    if headers["etag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    if variant == "video" and (url := state.link(file["key"], request.method, LINK_SECONDS)):
        return RedirectResponse(url, 307, {"cache-control": "no-store"})
    return _ranged(request, state, file, headers)


def _find(request: Request, state: State, id: str, variant: str):
    owner = find_owner(request).id if link_end(request, id, variant) is None else None
    row = state.listing.get(id, owner)
    if row is None:
        raise not_found(id)
    return row


def _reference(state: State, request: dict[str, Any], index: int) -> Response:
    references = request["references"]
    if index >= len(references):
        raise ApiError(404, f"the video has {len(references)} references, counted from 0", "index")
    key = references[index]["key"]
    image = pictures.from_file(key, state.store.get(key), request)
    return Response(pictures.to_png(image), media_type="image/png", headers={"cache-control": "private, max-age=3600"})


def _ranged(request: Request, state: State, file: dict, headers: dict[str, str]) -> Response:
    size = file["bytes"]
    start, stop, status = 0, size, 200
    asked = request.headers.get("range")
    if asked is not None and request.headers.get("if-range", headers["etag"]) == headers["etag"]:
        span = _parse_range(asked, size)
        if span == (0, 0):
            headers["content-range"] = f"bytes */{size}"
            error = ApiError(416, f"the file has {size} bytes", "Range")
            return Response(status_code=error.status, headers={"content-range": headers["content-range"]})
        if span is not None:
            (start, stop), status = span, 206
            headers["content-range"] = f"bytes {start}-{stop - 1}/{size}"
    headers["content-length"] = str(stop - start)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers)
    return StreamingResponse(state.store.stream(file["key"], start, stop), status, headers)


def _parse_range(text: str, size: int) -> tuple[int, int] | None:
    """Start and stop of one range; (0, 0) when the file does not reach it; None for what may be ignored (RFC 9110)."""
    match = _RANGE.fullmatch(text.strip())
    if not match or not (match[1] or match[2]):
        return None
    if not match[1]:
        length = min(int(match[2]), size)
        return (size - length, size) if length else (0, 0)
    start, stop = int(match[1]), min(int(match[2] or size) + 1, size)
    if match[2] and int(match[2]) < start:
        return None
    return (start, stop) if start < size else (0, 0)
