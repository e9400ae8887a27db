"""From a request's body, JSON or multipart, to fields and pictures. Nothing that a client says about a file counts."""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any

from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request

from ..problems import ApiError
from ..schema import VideoRequest

_WORDS = {  # in place of pydantic's
    "extra_forbidden": "unknown parameter",
    "string_pattern_mismatch": "give WIDTHxHEIGHT in pixels, such as 512x512",
}
MAX_FIELDS = 64
MAX_FIELD_BYTES = 2**20
MAX_JSON_PARTS = 20_000  # a request has some forty values; millions of empty lists would keep all others waiting
_PICTURES = re.compile(r"input_reference(\[\d{0,3}\])?(\[(?P<part>image_url|file_id)\])?")
_DATA_URL = re.compile(r"data:[\w.+/-]{0,100}(;[\w.+=-]{1,100})*;base64,", re.ASCII)


async def read_request(request: Request, *, max_references: int) -> tuple[VideoRequest, list[bytes], bytes | None]:
    """The fields of a request, the bytes of its pictures, and those of a mask.

    Raises:
        ApiError: 400, or 415 for a body of another kind; the message names the parameter.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        async with request.form(
            max_files=max_references + 2, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES
        ) as form:
            fields, files, mask_file = _split_form(form)
            pictures = [await _uploaded(file) for file in files]
            mask = None if mask_file is None else await _uploaded(mask_file, "mask")
    elif kind == "application/json":
        fields, pictures, mask = await run_in_threadpool(_split_json, await request.body())
    else:
        raise ApiError(415, "send multipart/form-data or application/json", code="unsupported_media_type")
    if len(pictures) > max_references:
        raise ApiError(400, f"{len(pictures)} pictures: at most {max_references} here", "input_reference")
    return _validated(fields), pictures, mask


def _validated(fields: dict[str, Any]) -> VideoRequest:
    try:
        return VideoRequest.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        name = str(first["loc"][0]) if first["loc"] else None
        message = _WORDS.get(first["type"], first["msg"])
        if first["type"].endswith("_parsing"):
            message = f"{message}, got {str(first['input'])[:60]!r}"
        raise ApiError(400, f"{(name or 'request')[:100]}: {message}", name and name[:100]) from error


def _split_form(form: FormData) -> tuple[dict[str, Any], list[UploadFile | str], UploadFile | str | None]:
    fields: dict[str, Any] = {}
    pictures: list[UploadFile | str] = []
    mask: UploadFile | str | None = None
    for name, value in form.multi_items():
        if match := _PICTURES.fullmatch(name):
            _refuse_file_id(match["part"])
            pictures.append(value)
        elif name == "mask":
            if mask is not None:
                raise ApiError(400, "mask is given twice", "mask")
            mask = value
        elif isinstance(value, UploadFile):
            raise ApiError(400, f"{name[:100]}: a file is not expected here", name[:100])
        elif name in fields:
            raise ApiError(400, f"{name[:100]} is given twice", name[:100])
        else:
            fields[name] = value
    return fields, pictures, mask


def _split_json(body: bytes) -> tuple[dict[str, Any], list[bytes], bytes | None]:
    if sum(body.count(mark) for mark in (b"[", b"{", b",")) > MAX_JSON_PARTS:
        raise ApiError(400, f"the body has more than {MAX_JSON_PARTS:,} parts, and a request has a few")
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "the body is not JSON") from error
    if not isinstance(fields, dict):
        raise ApiError(400, "the body is not a JSON object")
    given = fields.pop("input_reference", None)
    sources = [] if given is None else given if isinstance(given, list) else [given]
    mask = fields.pop("mask", None)
    return (
        fields,
        [_from_text(_json_picture(source)) for source in sources],
        None if mask is None else _from_text(_json_picture(mask, "mask"), "mask"),
    )


def _json_picture(source: Any, name: str = "input_reference") -> str:
    if isinstance(source, dict):
        _refuse_file_id(*source.keys() & {"file_id"})
        source = source.get("image_url")
        source = source.get("url") if isinstance(source, dict) else source
    if not isinstance(source, str):
        raise ApiError(400, f"{name}: a data URL, or an object with image_url", name)
    return source


def _refuse_file_id(part: str | None = None) -> None:
    if part == "file_id":
        raise ApiError(400, "input_reference: there is no file store here; send the picture itself", "input_reference")


async def _uploaded(source: UploadFile | str, name: str = "input_reference") -> bytes:
    return _from_text(source, name) if isinstance(source, str) else await source.read()


def _from_text(text: str, name: str = "input_reference") -> bytes:
    if not (match := _DATA_URL.match(text)):
        raise ApiError(400, f"{name}: send the picture itself, or a data URL in base64; no address is fetched",
                       name)  # fmt: skip
    try:
        return base64.b64decode(text[match.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(400, f"{name}: the data URL is not base64", name) from error
