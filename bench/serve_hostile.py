"""Requests that nobody means well with: each is answered in words, nothing of it stays, nobody else's is shown."""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import socket
import struct
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
from PIL import Image
from server_process import PICTURE, ServerProcess, submit

from videomaker.serve.config import load_config
from videomaker.serve.state import State

SECRET = "nobody else may read this"
SETTINGS = {"workers": 0, "max_active": 10**6, "max_wait": 1e9, "max_body_mib": 1, "upload_seconds": 2,
            "max_pixels": 4_000_000}  # fmt: skip
Send = Callable[[httpx2.Client, random.Random, str], int]


def hostile(options: argparse.Namespace) -> dict[str, Any]:
    """Sends them by kinds, and looks at what is left."""
    chance, statuses = random.Random(options.seed), Counter()
    with tempfile.TemporaryDirectory(prefix="videomaker-bench-") as name, tempfile.TemporaryDirectory() as spool:
        os.environ["TMPDIR"] = spool  # where the server would leave what it was sent
        with ServerProcess(Path(name), **SETTINGS) as server:
            state = State(load_config(data=Path(name)))
            victim, attacker = (
                server.client(headers={"authorization": f"Bearer {state.keys.create(who)}"}) for who in ("ann", "eve")
            )
            secret = submit(victim, SECRET).json()
            seen: list[str] = []
            attacker.event_hooks = {"response": [lambda answer: seen.append(answer.read().decode(errors="replace"))]}
            kinds = [_multipart, _json_body, _picture, _identifier, _header, _cut]
            for index in range(options.requests):
                kind = kinds[index % len(kinds)]
                try:
                    status = kind(attacker, chance, secret["id"])
                except (httpx2.LocalProtocolError, httpx2.InvalidURL):  # the client itself will not send that
                    status = 0
                except httpx2.RemoteProtocolError:  # the connection was closed on what is not HTTP
                    status = 1
                statuses[kind.__name__.strip("_"), status] += 1
            accepted = _remove_all(attacker)
            left = {key.split("/")[1] for key in state.store.keys("videos")}
            result = {
                "requests": options.requests,
                "by_kind": {f"{kind} {status}": count for (kind, status), count in sorted(statuses.items())},
                "server_errors": sum(count for (_, status), count in statuses.items() if status >= 500),
                "accepted_and_deleted": accepted,
                "files_left": len(left - {secret["id"]}) + len(os.listdir(spool)),
                "others_seen": sum(SECRET in text for text in seen),
                "victim_unharmed": victim.get(f"/v1/videos/{secret['id']}").json()["status"] == "queued",
                "answers_after": victim.get("/healthz").status_code == 200,
            }
    kept = not (result["server_errors"] or result["files_left"] or result["others_seen"])
    return {**result, "kept": kept and result["victim_unharmed"] and result["answers_after"]}


def _remove_all(client: httpx2.Client) -> int:
    count = 0
    while page := client.get("/v1/videos", params={"limit": 100}).json()["data"]:
        for video in page:
            count += client.delete(f"/v1/videos/{video['id']}").status_code == 200
    return count


def _noise(chance: random.Random, length: int) -> bytes:
    return chance.randbytes(chance.randrange(length))


def _text(chance: random.Random) -> str:
    alphabet = "aZ0 ./\\%\0\r\n\"';<>&{}[]\u202e\ud83dé漢"
    return "".join(chance.choices(alphabet.replace("\ud83d", "😀"), k=chance.choice((0, 1, 8, 300))))


def _mutated(chance: random.Random, data: bytes) -> bytes:
    array = bytearray(data)
    for _ in range(chance.choice((1, 3, 30))):
        place = chance.randrange(len(array) + 1)
        array[place : place + chance.choice((0, 1, 1, 9))] = _noise(chance, 4)
    return bytes(array[: chance.randrange(len(array)) if chance.random() < 0.4 and array else len(array)])


def _multipart(client: httpx2.Client, chance: random.Random, _id: str) -> int:
    """Well-formed forms of odd parts, then broken at random."""
    names = ["prompt", "size", "seed", "input_reference", "input_reference[]", "input_reference[image_url]", "a[b][c]"]
    name = chance.choice([*names, "seconds", "reference_of", _text(chance).replace("\r", "").replace("\n", "")])
    files = [("input_reference", (_text(chance)[:50].replace("\0", ""), PICTURE.read_bytes()))]
    form = client.build_request("POST", "/v1/videos", data={"prompt": "a", name: _text(chance)}, files=files)
    body, headers = form.read(), dict(form.headers)
    if chance.random() < 0.7:
        body = _mutated(chance, body)
    if chance.random() < 0.2:
        headers["content-type"] = chance.choice(["multipart/form-data", "multipart/form-data; boundary=", "x", ""])
    headers.pop("content-length", None)
    return client.post("/v1/videos", content=body, headers=headers).status_code


def _value(chance: random.Random, depth: int = 0) -> Any:
    simple = [
        None,
        True,
        -1,
        0,
        10**400,
        1e308,
        float("nan"),
        _text(chance),
        "data:image/png;base64,AAAA",
        "http://[::1",
    ]
    if depth < 3 and chance.random() < 0.3:
        return {_text(chance): _value(chance, depth + 1)} if chance.random() < 0.5 else [_value(chance, depth + 1)] * 3
    return chance.choice(simple)


def _json_body(client: httpx2.Client, chance: random.Random, _id: str) -> int:
    """JSON of the right shape with wrong values, of the wrong shape, and what is no JSON."""
    names = ["prompt", "size", "seed", "fps", "num_frames", "input_reference", "guidance_scale", "fit", "consent", "x"]
    body: Any = {name: _value(chance) for name in chance.sample(names, 4)}
    if chance.random() < 0.2:
        body = _value(chance)
    data = json.dumps(body).encode()
    if chance.random() < 0.2:
        data = chance.choice([b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b"", _mutated(chance, data or b"x")])
    return client.post("/v1/videos", content=data, headers={"content-type": "application/json"}).status_code


def _picture(client: httpx2.Client, chance: random.Random, _id: str) -> int:
    """Damaged files of every format, a bomb, an animation, what is no picture."""
    target = io.BytesIO()
    image = Image.open(PICTURE).convert("RGB")
    file_format = chance.choice(["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF"])
    image.save(target, file_format)
    choices = [
        _mutated(chance, target.getvalue()),
        _noise(chance, 4000),
        b"",
        _bomb(),
        b"%!PS-Adobe\nshowpage",
        b"<svg/>",
    ]
    data = chance.choices(choices, weights=(6, 1, 1, 1, 1, 1))[0]
    name = chance.choice(["x.png", "../../x", "/etc/passwd", "a" * 3000, "x.php\\"])
    files = [("input_reference", (name, data, chance.choice(["image/png", "text/html", "x"])))]
    return client.post("/v1/videos", data={"prompt": "a"}, files=files).status_code


def _bomb() -> bytes:
    """A PNG of a few bytes that says it has 3.6 thousand million pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(header)) + chunk + struct.pack(">I", zlib.crc32(chunk))


def _identifier(client: httpx2.Client, chance: random.Random, secret: str) -> int:
    """Another owner's id and paths that lead elsewhere, on every route."""
    odd = [
        "..",
        "../../videomaker.db",
        "..%2f..%2fvideomaker.db",
        "%2e%2e/x",
        "%00",
        "a" * 5000,
        "', '1'='1",
        "%ff",
        "*",
    ]
    id = chance.choice([secret, secret, *odd])
    queries = ["variant=record", "variant=../x", "variant=reference&index=-1", "expires=9999999999&signature=00",
               "expires=x&signature=é", ""]  # fmt: skip
    others = [("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/events"), ("HEAD", "/content")]
    method, tail = chance.choice([*others, *(("GET", f"/content?{query}") for query in queries)])
    if chance.random() < 0.2:
        return client.get(
            "/v1/videos", params={"after": id, "limit": chance.choice(["1", "0", "x", "1e9"])}
        ).status_code
    if chance.random() < 0.1:
        data = {"prompt": "a", "reference_of": id[:64]}
        return client.post("/v1/videos", data=data).status_code
    return client.request(method, f"/v1/videos/{id}{tail}").status_code


def _header(client: httpx2.Client, chance: random.Random, _id: str) -> int:
    """Odd headers on good requests."""
    names = ["range", "if-range", "if-none-match", "idempotency-key", "x-stainless-retry-count", "origin",
             "authorization", "x-request-id", "content-type", "accept-encoding", "host", "traceparent"]  # fmt: skip
    name = chance.choice(names)
    value = chance.choice(
        [b"", b"\xff\xfe", b"bytes=-,", b"bytes=99999999999999999999-", b"a" * 7000, b"Basic x", b"-1", b"["]
    )
    if chance.random() < 0.5:
        return client.get("/v1/videos", headers=[(name.encode(), value)]).status_code
    return submit(client, headers=[(name.encode(), value)]).status_code


def _cut(client: httpx2.Client, chance: random.Random, _id: str) -> int:
    """Connections that end, or hardly go on, in the middle of a request; 0 where no answer was waited for."""
    url = client.base_url
    key = client.headers["authorization"]
    head = f"POST /v1/videos HTTP/1.1\r\nhost: {url.host}\r\nauthorization: {key}\r\ncontent-type: application/json\r\n"
    with socket.create_connection((url.host, url.port), timeout=10) as connection:
        kind = chance.random()
        if kind < 0.3:
            connection.sendall(head.encode()[: chance.randrange(1, len(head))])
        elif kind < 0.8:
            connection.sendall((head + "content-length: 100000\r\n\r\n").encode() + b"{" * chance.randrange(1000))
        elif kind < 0.95:
            odd = chance.choice(["content-length: -5", "transfer-encoding: chunked\r\ncontent-length: 5", "x" * 70_000])
            connection.sendall(f"{head}{odd}\r\n\r\n".encode() + _noise(chance, 50))
            return _status(connection)
        else:  # waits for the server to lose patience
            connection.sendall((head + "content-length: 1000\r\n\r\n{").encode())
            return _status(connection)
        if chance.random() < 0.5:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
    return 0


def _status(connection: socket.socket) -> int:
    try:
        answer = connection.recv(4096).split(b" ", 2)
    except OSError:
        return 0
    return int(answer[1]) if len(answer) > 1 else 0
