"""Jobs: make, look, list, cancel, delete."""

from __future__ import annotations

import re
from functools import partial
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Header, Path, Query, Request

from ..accept import Call, accept
from ..problems import ApiError, not_found
from ..schema import Deleted, Video, VideoList, VideoRequest
from ..state import State
from ..tracing import current_traceparent
from ..view import show
from .access import AdmittedOf, OwnerOf, StateOf
from .uploads import read_request

router = APIRouter(prefix="/v1/videos", tags=["videos"])
VideoId = Annotated[str, Path(max_length=128, description="Of a video of yours.")]
_PRINTABLE = re.compile(r"[\x21-\x7e]{1,255}")


def _request_body() -> dict[str, Any]:
    """The body of a create, for the OpenAPI page: FastAPI would want one kind of body, and parts of one name."""
    schema = VideoRequest.model_json_schema()
    picture = {"type": "string", "format": "binary", "description": "The subject; repeatable as input_reference[]."}
    data_url = {"description": "A data URL, {image_url: data URL}, or a list of them."}
    mask = {"description": "Of the one picture's size, 0 (or transparent) outside the subject, which is put on white."}
    form = {**schema, "properties": {**schema["properties"], "input_reference": picture,
                                     "mask": {"type": "string", "format": "binary", **mask}}}  # fmt: skip
    body = {**schema, "properties": {**schema["properties"], "input_reference": data_url, "mask": mask}}
    example = {"prompt": "a big creature hopping to the left over a green meadow", "seed": 7,
               "input_reference": "data:image/png;base64,iVBORw0KGgo…"}  # fmt: skip
    return {
        "required": True,
        "content": {"multipart/form-data": {"schema": form}, "application/json": {"schema": body, "example": example}},
    }


@router.post("", openapi_extra={"requestBody": _request_body()})
async def create(
    request: Request,
    state: StateOf,
    owner: AdmittedOf,
    idempotency_key: Annotated[str | None, Header(description="The same key and body: the same job.")] = None,
    x_stainless_retry_count: Annotated[str, Header(include_in_schema=False)] = "0",
) -> Video:
    """Accepts a video to make. It will end, as completed or failed, whatever happens to this server."""
    if idempotency_key is not None and not _PRINTABLE.fullmatch(idempotency_key):
        raise ApiError(400, "Idempotency-Key: 1 to 255 printable characters", "Idempotency-Key")
    asked, sent, mask = await read_request(request, max_references=state.config.max_references)
    retry = int(x_stainless_retry_count) if re.fullmatch(r"\d{1,3}", x_stainless_retry_count) else 0
    call = Call(owner, request.scope["state"]["request_id"], idempotency_key, retry, current_traceparent())
    accepted = partial(_accepted, state, asked, sent, mask, call)
    services = request.app.state
    return await to_thread.run_sync(accepted, limiter=services.looking if asked.highlight else services.accepting)


def _accepted(state: State, asked: VideoRequest, sent: list[bytes], mask: bytes | None, call: Call) -> Video:
    id, _ = accept(state, asked, sent, call, mask=mask)
    return show_one(state, id, call.owner.id)


@router.get("")
def listed(
    state: StateOf,
    owner: OwnerOf,
    after: Annotated[str | None, Query(max_length=128)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Annotated[str, Query(pattern="^(asc|desc)$")] = "desc",
) -> VideoList:
    """Your videos, a page at a time."""
    try:
        rows, more = state.listing.page(owner.id, limit=limit, after=after, newest_first=order == "desc")
    except KeyError:
        raise ApiError(400, f"after: there is no video {after!r}", "after") from None
    data = show(state, rows)
    ends = (data[0].id, data[-1].id) if data else (None, None)
    return VideoList(data=data, first_id=ends[0], last_id=ends[1], has_more=more)


@router.get("/{id}")
def retrieve(state: StateOf, owner: OwnerOf, id: VideoId) -> Video:
    """A video: how far it is, or why it failed."""
    return show_one(state, id, owner.id)


@router.post("/{id}/cancel")
def cancel(state: StateOf, owner: OwnerOf, id: VideoId) -> Video:
    """Ends a video that waits or is being made, at its next step; one that has ended stays as it is."""
    state.queue.cancel(owner.id, id)
    return show_one(state, id, owner.id)


@router.delete("/{id}")
def delete(state: StateOf, owner: OwnerOf, id: VideoId) -> Deleted:
    """Removes a video and its files, ending it first if it has not ended."""
    if not state.listing.remove(id, owner.id):
        raise not_found(id)
    state.store.delete(f"videos/{id}")
    return Deleted(id=id)


def show_one(state: State, id: str, owner: str | None) -> Video:
    """The video of an owner; `None` does not ask whose it is.

    Raises:
        ApiError: 404.
    """
    row = state.listing.get(id, owner)
    if row is None:
        raise not_found(id)
    return show(state, [row])[0]


@router.post("/{id}/remix", include_in_schema=False)
@router.post("/edits", include_in_schema=False)
@router.post("/extensions", include_in_schema=False)
@router.post("/characters", include_in_schema=False)
@router.get("/characters/{id}", include_in_schema=False)
def other(id: str = "") -> None:
    """What OpenAI's interface has and this method does not do."""
    raise ApiError(501, "remix, edits, extensions and characters are not made here", code="not_implemented")
