"""The application: routes and what surrounds them, over the services of `State`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from anyio import CapacityLimiter
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from obstore.exceptions import BaseError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from videomaker import __version__
from videomaker.errors import first_line

from .api import content, events, page, system, videos
from .api.middleware import Boundary
from .database import PASSING
from .problems import ApiError
from .schema import ErrorAnswer
from .state import State

log = structlog.get_logger("videomaker.serve.http")
AWAY_RETRY = 2  # seconds
ACCEPTED_AT_ONCE = 4  # requests, each of which may hold `max_references` decoded pictures of `max_pixels`
_DESCRIPTION = """Puts a subject, given as one picture, into a video described by a prompt.

The interface is OpenAI's Videos with fields of our own; every error is `{"error": {message, type, param, code}}`."""


def create_app(state: State) -> FastAPI:
    """The web application of one process.

    Args:
        state: its services; the database is at the tables' version.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.watcher = events.Watcher(state)
        app.state.accepting = CapacityLimiter(ACCEPTED_AT_ONCE)
        app.state.looking = CapacityLimiter(1)  # for a subject by a word, which takes seconds and all cores
        yield

    app = FastAPI(
        title="VideoMaker",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # `page` has one that asks nobody else
        redoc_url=None,
        responses={"4XX": {"model": ErrorAnswer, "description": "Refused"}},
        swagger_ui_oauth2_redirect_url=None,
    )
    app.state.services = state
    for router in (videos.router, content.router, events.router, system.router, page.router):
        app.include_router(router)
    page.mount_files(app)
    app.add_exception_handler(ApiError, _api_error)
    for kind in (*PASSING, PoolTimeout, BaseError):
        app.add_exception_handler(kind, _away)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_middleware(Boundary, state=state)
    return app


async def _api_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), error.status, error.headers())


async def _away(_request: Request, error: Exception) -> JSONResponse:
    """The database or the object store does not answer: no fault of the request's, which may be sent again."""
    log.warning("away", error=first_line(error)[:300])
    answer = ApiError(503, "a part of this server is away for now: try again soon", code="away", retry_after=AWAY_RETRY)
    return JSONResponse(answer.body(), answer.status, answer.headers())


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    """What Starlette refuses by itself: no such route, another method, a broken multipart body."""
    assert isinstance(error, HTTPException)
    message = {404: f"there is nothing at {request.url.path[:200]}"}.get(error.status_code, str(error.detail))
    answer = ApiError(error.status_code, message)
    return JSONResponse(answer.body(), error.status_code, error.headers)


async def _validation_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = str(first["loc"][-1])
    answer = ApiError(400, f"{name}: {first['msg']}", name)
    return JSONResponse(answer.body(), answer.status)
