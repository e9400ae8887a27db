"""Who asks: the owner behind a bearer key, or anybody where there are no keys and only this machine can ask."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool

from ..accept import check_open
from ..keys import LOCAL, Owner
from ..problems import ApiError
from ..state import State

_bearer = HTTPBearer(auto_error=False, description="A key of `videomaker keys create`, where there are any.")


def get_state(request: Request) -> State:
    """The services of this process."""
    return request.app.state.services


async def get_owner(request: Request, _key: Annotated[object, Depends(_bearer)] = None) -> Owner:
    """The owner whose jobs the request may see.

    Raises:
        ApiError: 401 without a good key where one is needed.
    """
    return await run_in_threadpool(find_owner, request)


async def get_admitted(request: Request, _key: Annotated[object, Depends(_bearer)] = None) -> Owner:
    """As `get_owner`, of a request that makes a job: asked before its body is read.

    Raises:
        ApiError: 401, or 503 while no jobs are taken.
    """
    return await run_in_threadpool(_admit, request)


def _admit(request: Request) -> Owner:
    owner = find_owner(request)
    check_open(get_state(request))
    return owner


def find_owner(request: Request) -> Owner:
    """As `get_owner`, in a thread."""
    state = get_state(request)
    kind, _, key = request.headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and (owner := state.keys.owner(key.strip())):
        return owner
    if state.keys.exist():
        raise ApiError(401, "give a good key: Authorization: Bearer vm_…", code="invalid_api_key")
    if not state.config.is_loopback:
        raise ApiError(401, "this server has no keys yet: videomaker keys create NAME", code="invalid_api_key")
    return LOCAL


def link_end(request: Request, id: str, what: str) -> int | None:
    """Until when the signed link to `what` of a video is good by which the request came; None if it came by none.

    Raises:
        ApiError: 403, it is not good.
    """
    query = request.query_params
    signature, expires = query.get("signature"), query.get("expires")
    if signature is None or expires is None:
        return None
    if not get_state(request).signer.is_good(id, what, expires, signature):
        raise ApiError(403, "the link is not good or no longer: ask for the video anew", code="link_expired")
    return int(expires)


StateOf = Annotated[State, Depends(get_state)]
OwnerOf = Annotated[Owner, Depends(get_owner)]
AdmittedOf = Annotated[Owner, Depends(get_admitted)]
