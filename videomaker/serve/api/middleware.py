"""Around every request: its id, its limits, who may send it, one line of log, and errors in one shape."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from urllib.parse import SplitResult, urlsplit

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..problems import ApiError
from ..state import State
from ..tracing import span

log = structlog.get_logger("videomaker.serve.http")

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.\-]{8,64}")
_ID = re.compile(r"/video_\w+")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_SAFE = ("GET", "HEAD", "OPTIONS")


class Boundary:
    """The outermost layer, in plain ASGI so that it costs nothing and sees everything."""

    def __init__(self, app: ASGIApp, state: State):
        self.app, self.state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex[:20]}"
        scope.setdefault("state", {})["request_id"] = request_id
        structlog.contextvars.bind_contextvars(request_id=request_id)
        answer, start = _Answer(send, request_id), time.perf_counter()
        try:
            self._check_sender(scope, headers)
            name = f"{scope['method']} {_ID.sub('/{id}', scope['path'])}"
            with span(name, [headers.get("traceparent")], request_id=request_id):
                await self.app(scope, self._limited(receive, headers), answer)
        except ClientDisconnect:
            answer.status = 499  # as nginx logs it; nobody reads an answer
        except ApiError as error:
            await _refuse(error, scope, receive, answer)
        except Exception:
            log.exception("request failed", path=scope["path"])
            await _refuse(ApiError(500, "the server failed; its log has the reason"), scope, receive, answer)
        finally:
            seconds = time.perf_counter() - start
            route = getattr(scope.get("route"), "path", "other")
            self.state.process.observe(scope["method"], route, answer.status, seconds)
            level = log.debug if route in ("/healthz", "/readyz", "/metrics") else log.info
            level(
                "request", method=scope["method"], path=scope["path"], status=answer.status, ms=round(1000 * seconds, 1)
            )
            structlog.contextvars.clear_contextvars()

    def _check_sender(self, scope: Scope, headers: Headers) -> None:
        """Keeps other web sites from using a server through its user's browser."""
        host = _host_name(headers.get("host", ""))
        if self.state.config.is_loopback and host not in (*_LOOPBACK, *self.state.config.allowed_hosts):
            # A name that an attacker points at 127.0.0.1 makes his page same-origin with this server.
            raise ApiError(403, f"host {host[:100]!r} is not served: see allowed_hosts", code="host_not_allowed")
        if scope["method"] in _SAFE:
            return
        origin = headers.get("origin")
        foreign = origin is not None and _split(origin).netloc != headers.get("host")
        if foreign or headers.get("sec-fetch-site") == "cross-site":
            raise ApiError(403, "requests from other web sites are refused", code="cross_site")

    def _limited(self, receive: Receive, headers: Headers) -> Receive:
        """The body, as long as it is neither too large nor too slow."""
        config = self.state.config
        most = int(config.max_body_mib * 2**20)
        too_large = ApiError(413, f"a request has at most {config.max_body_mib:g} MiB: send smaller pictures")
        if (length := headers.get("content-length", "")).isdigit() and int(length) > most:
            raise too_large
        seen, until = 0, time.monotonic() + config.upload_seconds
        complete = False

        async def limited() -> Message:
            nonlocal seen, complete
            if complete:  # what follows is a client's leaving, for which an answer may wait long
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, until - time.monotonic()))
            except TimeoutError:
                slow = f"the request did not come within {config.upload_seconds:g} s"
                raise ApiError(408, slow, code="upload_too_slow") from None
            seen += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if seen > most:
                raise too_large
            return message

        return limited


class _Answer:
    """Passes an answer on with the request's id, and remembers its status."""

    def __init__(self, send: Send, request_id: str):
        self.send, self.request_id, self.status = send, request_id, 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(raw=message["headers"])
            headers["x-request-id"] = self.request_id
            headers.setdefault("x-content-type-options", "nosniff")
            headers.setdefault("referrer-policy", "no-referrer")
        await self.send(message)


async def _refuse(error: ApiError, scope: Scope, receive: Receive, answer: _Answer) -> None:
    if answer.status == 0:
        headers = {**error.headers(), "connection": "close"}  # the rest of the body is not read
        await JSONResponse(error.body(), error.status, headers)(scope, receive, answer)


def _host_name(host: str) -> str:
    return _split(f"//{host}").hostname or ""


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:  # brackets that are no address: of nobody
        return urlsplit("")
