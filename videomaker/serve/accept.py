"""Accepting a request: pictures decoded and stored, the job in the queue, or a refusal that leaves nothing behind."""

from __future__ import annotations

import json
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from PIL import Image

from videomaker.digests import sha256
from videomaker.errors import InputError

from . import pictures
from .admission import Limits, Refused
from .database import PASSING, wait_out
from .highlighting import Reference
from .keys import Owner
from .models import Bucket
from .problems import ApiError
from .queue import KeyReused, NewJob
from .schema import VideoRequest, check_declared, choose_model, resolve
from .state import State

DATABASE_PATIENCE = 20  # seconds for which a submit is tried again
DISK_RETRY = 60  # seconds after which a client may ask again whether the disk has room


@dataclass(frozen=True)
class Call:
    """What a request says beside its body."""

    owner: Owner
    request_id: str
    idempotency_key: str | None = None
    client_retry: int = 0
    traceparent: str | None = None


def check_open(state: State) -> None:
    """Refuses jobs while the server ends or its disk is nearly full, before any body is read.

    Raises:
        ApiError: 503.
    """
    if state.draining:
        raise ApiError(503, "the server is about to end: try again soon", code="draining", retry_after=5)
    free = state.store.free_bytes()
    if free is not None and free < state.config.min_free_mib * 2**20:
        raise ApiError(503, "the disk is nearly full", code="disk_full", retry_after=DISK_RETRY)


def accept(
    state: State, asked: VideoRequest, sent: list[bytes], call: Call, *, mask: bytes | None = None
) -> tuple[str, bool]:
    """The id of the job that a request makes or made before, and whether it is new.

    Args:
        state: the services.
        asked: the fields of the request.
        sent: its pictures.
        call: what it says beside.
        mask: of its one picture's subject.

    Raises:
        ApiError: it is refused; no file of it stays.
    """
    uploads = _decode(state, sent)
    earlier = _earlier_references(state, asked.reference_of, call.owner) if asked.reference_of else None
    if bool(uploads) == bool(earlier):
        problem = "no picture of the subject" if not uploads else "input_reference and reference_of do not go together"
        raise ApiError(
            400, f"{problem}: send input_reference, or reference_of with a video of yours", "input_reference"
        )
    if earlier and (mask or asked.box or asked.highlight):
        raise ApiError(
            400, "the pictures of an earlier video are used as they were: send the picture again", "reference_of"
        )
    model = choose_model(asked.model, state.models)
    request = resolve(asked, len(earlier["references"]) if earlier else len(uploads), model, state.config)
    id = f"video_{int(time.time() * 1000):012x}{secrets.token_hex(10)}"
    if earlier:
        request["references"] = _copied(request, earlier, id)
        files: list[bytes] = []
    else:
        request["references"], files = _described(state.highlighter.fit(asked, mask, uploads, request), id)
    check_declared(request, model.shapes, len(request["references"]))
    _check_safety(state, request, [upload.image for upload in uploads], earlier)
    try:
        for reference, data in zip(request["references"], files, strict=False):
            with suppress(FileExistsError):  # the id is ours alone: an earlier try whose answer was lost
                state.store.put(reference["key"], data)
        for reference, old in zip(request["references"], earlier["references"] if earlier else (), strict=False):
            state.store.copy(old["key"], reference["key"])
        state.store.settle(f"videos/{id}")
        accepted, is_new = _submit(state, model.workers, id, asked, request, call)
    except PASSING:
        raise  # nobody knows whether there is a row; without one, the files are swept later
    except BaseException:
        state.store.delete(f"videos/{id}")
        raise
    if not is_new:
        state.store.delete(f"videos/{id}")
    return accepted, is_new


def _decode(state: State, sent: list[bytes]) -> list[pictures.Upload]:
    try:
        return [
            pictures.decode(data, f"input_reference {index}", max_pixels=state.config.max_pixels)
            for index, data in enumerate(sent)
        ]
    except InputError as error:
        raise ApiError(400, str(error), "input_reference", "invalid_image") from error


def _earlier_references(state: State, id: str, owner: Owner) -> dict[str, Any]:
    row = state.listing.get(id, owner.id)
    if row is None:
        raise ApiError(404, f"there is no video {id!r}", "reference_of", "video_not_found")
    return row.request


def _copied(request: dict[str, Any], earlier: dict[str, Any], id: str) -> list[dict[str, str]]:
    for name in ("width", "height", "fit"):
        if request[name] != earlier[name]:
            raise ApiError(400, f"{name} {request[name]} differs from the earlier video's {earlier[name]}: "
                           "send the picture again", "reference_of")  # fmt: skip
    return [
        {**reference, "key": f"videos/{id}/{reference['key'].rsplit('/', 1)[1]}"} for reference in earlier["references"]
    ]


def _described(fitted: list[Reference], id: str) -> tuple[list[dict[str, Any]], list[bytes]]:
    references = [
        {
            "key": f"videos/{id}/reference-{index}{reference.suffix}",
            "sha256": reference.sha256,
            **({"highlight": reference.story} if reference.story else {}),
        }
        for index, reference in enumerate(fitted)
    ]
    return references, [reference.file for reference in fitted]


def _check_safety(
    state: State, request: dict[str, Any], images: list[Image.Image], earlier: dict[str, Any] | None
) -> None:
    if state.request_check is None:
        return
    if earlier:
        keys = [reference["key"] for reference in earlier["references"]]
        images = [pictures.from_file(key, state.store.get(key), earlier) for key in keys]
    if reason := state.request_check(request, images):
        raise ApiError(400, reason, code="safety_rejected")


def _submit(
    state: State, model: str, id: str, asked: VideoRequest, request: dict[str, Any], call: Call
) -> tuple[str, bool]:
    config, owner, bucket = state.config, call.owner, str(Bucket.of(request))
    identity = [asked.model_dump(exclude_none=True), [reference["sha256"] for reference in request["references"]]]
    job = NewJob(
        id=id,
        owner=owner.id,
        model=model,
        bucket=bucket,
        steps=request["num_inference_steps"],
        cost=state.registry.cost(model, bucket),
        request=request,
        fingerprint=sha256(json.dumps(identity, sort_keys=True)),
        priority=owner.priority,
        idempotency_key=call.idempotency_key,
        client_retry=call.client_retry,
        request_id=call.request_id,
        traceparent=call.traceparent,
    )
    limits = Limits(
        config.max_wait,
        owner.max_active or config.max_active,
        owner.max_per_hour or config.max_per_hour,
        config.merge_retries,
    )
    try:
        return wait_out(lambda: state.queue.submit(job, limits), DATABASE_PATIENCE)
    except KeyReused as error:
        reused = "this Idempotency-Key belongs to another request: use a new one"
        raise ApiError(422, reused, code="idempotency_key_reused") from error
    except Refused as error:
        raise ApiError(429, error.reason, code="rate_limit_exceeded", retry_after=error.retry_after) from error
