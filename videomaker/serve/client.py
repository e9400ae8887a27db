"""Our own client: sends videos to make, follows them, fetches what comes out. Plain HTTP over the public interface."""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx2

from videomaker.errors import InputError
from videomaker.files import atomic_path

RETRIES = 8  # of a request that was refused for now, or that got no answer
LONGEST_PAUSE = 120.0
POLL_SECONDS = 2.0  # where no stream of events comes through


class Refusal(InputError):
    """The server does not do it: `status` of HTTP."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class Client:
    """A connection to a server, for as many threads as there are `connections`.

    Args:
        address: such as `http://127.0.0.1:8000`.
        key: of `videomaker keys create`, where the server has keys.
        patient: whether a server that says when to come again is asked again however often it says so.
        connections: at once.
        transport: in place of the network.
    """

    def __init__(
        self,
        address: str,
        key: str | None = None,
        *,
        patient: bool = False,
        connections: int = 100,
        transport: httpx2.BaseTransport | None = None,
    ):
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self.address, self._patient = address.rstrip("/"), patient
        self._http = httpx2.Client(
            base_url=self.address,
            headers=headers,
            timeout=httpx2.Timeout(60, read=120),
            limits=httpx2.Limits(max_connections=connections, max_keepalive_connections=connections),
            transport=transport,
        )

    def create(
        self, references: list[Path], fields: dict[str, Any], mask: Path | None = None, *, key: str | None = None
    ) -> dict[str, Any]:
        """Asks for a video; sent again, if need be, under the same key, so that it is made once.

        Args:
            references: pictures of the subject.
            fields: of the request; those that are None are left out.
            mask: of the one picture's subject.
            key: of idempotency: the same key gets the same video, also from another process.

        Raises:
            InputError: the server refuses it, or cannot be reached.
        """
        data = {name: str(value) for name, value in fields.items() if value is not None}
        files = [("input_reference", (path.name, path.read_bytes())) for path in references]
        if mask is not None:
            files.append(("mask", (mask.name, mask.read_bytes())))
        headers = {"idempotency-key": key or uuid.uuid4().hex}
        return self._ask("POST", "/v1/videos", data=data, files=files, headers=headers).json()

    def follow(self, id: str, on_change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Waits until a video has ended, through restarts of the server; `on_change` sees it each time it changes.

        Raises:
            InputError: it was deleted, or the server stays away.
        """
        while True:
            try:
                for video in self._events(id):
                    on_change(video)
                    if video["status"] in ("completed", "failed"):
                        return video
            except httpx2.TransportError:
                pass  # the next question finds out whether the server is back
            video = self._ask("GET", f"/v1/videos/{id}").json()
            if video["status"] in ("completed", "failed"):
                on_change(video)
                return video
            time.sleep(POLL_SECONDS)

    def _events(self, id: str) -> Iterator[dict[str, Any]]:
        with self._http.stream("GET", f"/v1/videos/{id}/events") as answer:
            if answer.status_code != 200:
                return
            kind = ""
            for line in answer.iter_lines():
                if line.startswith("event:"):
                    kind = line[6:].strip()
                elif line.startswith("data:") and kind == "video":
                    yield json.loads(line[5:])

    def download(self, id: str, variant: str, path: Path) -> None:
        """Fetches a file of a video; it appears complete.

        Raises:
            InputError: there is none.
        """
        answer = self._ask("GET", f"/v1/videos/{id}/content", params={"variant": variant}, follow_redirects=True)
        with atomic_path(path) as temporary:
            temporary.write_bytes(answer.content)

    def cancel(self, id: str) -> None:
        """Ends a video that nobody waits for any more."""
        self._ask("POST", f"/v1/videos/{id}/cancel")

    def _ask(self, method: str, path: str, **options: Any) -> httpx2.Response:
        """One question, asked again when the answer is lost or says later."""
        failures = refusals = 0
        while True:
            try:
                answer = self._http.request(method, path, **options)
            except httpx2.TransportError as error:
                if failures == RETRIES:
                    raise InputError(f"server {self.address} does not answer: {error}; is it running?") from error
                time.sleep(min(0.5 * 2**failures, 10))
                failures += 1
                continue
            later = _seconds(answer.headers.get("retry-after"))
            is_over = refusals >= RETRIES and not (self._patient and later is not None)
            if answer.status_code not in (408, 429, 502, 503, 504) or is_over:
                return _checked(answer)
            spread = random.uniform(1, 1.2)  # or all that were refused together would come together again
            time.sleep(min(spread * (2**refusals if later is None else later), LONGEST_PAUSE))
            failures, refusals = 0, refusals + 1


def _seconds(later: str | None) -> float | None:
    """Of a Retry-After, which is a number or a date (RFC 9110, section 10.2.3); None where it is neither."""
    if later is None:
        return None
    if later.isdigit():
        return float(later)
    try:
        when = parsedate_to_datetime(later)
    except ValueError:
        return None
    return max(0.0, when.timestamp() - time.time())


def _checked(answer: httpx2.Response) -> httpx2.Response:
    if answer.is_success:
        return answer
    try:
        message = answer.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = answer.text[:200]
    raise Refusal(f"the server refuses ({answer.status_code}): {message}", answer.status_code)
