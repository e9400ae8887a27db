"""A file of jobs: one JSON object a line, with the options of `submit` as names; checked whole before any is sent."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from videomaker.digests import sha256, sha256_of_file
from videomaker.errors import InputError
from videomaker.files import check_file_name, parse_json, read_text
from videomaker.jobs.request import check_prompt, slug
from videomaker.pictures import load_reference

from .schema import MAX_SEED, Consent

MAX_BYTES = 2**28  # of the file
_API = {"steps": "num_inference_steps", "guidance": "guidance_scale", "frames": "num_frames"}
_SAME = ("prompt", "seed", "model", "negative_prompt", "fps", "fit", "consent", "highlight", "box")


class Line(BaseModel):
    """A video to make; what is left out is what the command line says, or the model's own default."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    reference: list[str] = Field(min_length=1, description="Pictures of the subject, relative to the file of jobs.")
    prompt: str
    seed: int = Field(0, ge=0, le=MAX_SEED)
    name: str | None = Field(None, description="Of the result, without a folder; else one is made of the rest.")
    model: str | None = None
    steps: int | None = Field(None, ge=1, le=10_000)
    guidance: float | None = Field(None, ge=0)
    negative_prompt: str | None = None
    width: int | None = Field(None, ge=1, le=4096)
    height: int | None = Field(None, ge=1, le=4096)
    frames: int | None = Field(None, ge=1, le=10_000)
    fps: float | None = Field(None, ge=0.1, le=240)
    fit: Literal["stretch", "pad", "crop"] | None = None
    consent: Consent | None = None
    highlight: str | None = None
    mask: str | None = None
    box: str | None = None

    @field_validator("reference", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("box", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return ",".join(map(str, value)) if isinstance(value, list) else value


@dataclass(frozen=True)
class BulkJob:
    """A checked line.

    Args:
        line: its number, from 1.
        digest: of all that decides what comes out, pictures included: the job's identity over runs.
        references, mask: pictures.
        fields: of the interface.
        path: of the video; its record goes beside it.
    """

    line: int
    digest: str
    references: tuple[Path, ...]
    mask: Path | None
    fields: dict[str, Any]
    path: Path


def api_fields(options: dict[str, Any]) -> dict[str, Any]:
    """The options of `submit` in the interface's words.

    Raises:
        InputError: of width and height one is missing.
    """
    fields = {name: options.get(name) for name in _SAME}
    fields.update({word: options.get(name) for name, word in _API.items()})
    width, height = options.get("width"), options.get("height")
    if (width is None) != (height is None):
        raise InputError(f"--width {width} --height {height}: give both, or neither")
    return {**fields, "size": None if width is None else f"{width}x{height}"}


def read_lines(file: Path, output: Path, defaults: dict[str, Any]) -> list[BulkJob]:
    """The jobs of a file; empty lines are left out.

    Args:
        file: JSON Lines.
        output: the folder of the results.
        defaults: options of `submit` for lines that say nothing else; None is left out.

    Raises:
        InputError: one cannot be used, or two are the same; the message names the line.
    """
    defaults = {name: value for name, value in defaults.items() if value is not None}
    digest_of, jobs = cache(_checked_picture), []
    seen: dict[str, int] = {}
    for number, text in enumerate(read_text(file, max_bytes=MAX_BYTES).split("\n"), 1):
        if not text.strip():
            continue
        try:
            job = _job(number, _parse(text, defaults), file.parent, output, digest_of)
        except InputError as error:
            raise InputError(f"{file} line {number}: {str(error).replace('--', '')}") from error
        for identity in (job.digest, str(job.path).casefold()):
            if (earlier := seen.setdefault(identity, number)) != number:
                raise InputError(f"{file} line {number}: the same video as line {earlier}; give another seed or name")
        jobs.append(job)
    if not jobs:
        raise InputError(f"{file} holds no job: write a JSON object a line")
    return jobs


def _parse(text: str, defaults: dict[str, Any]) -> Line:
    given = parse_json(text, "it")
    try:
        return Line.model_validate({**defaults, **given})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        known = f"unknown; known are {', '.join(Line.model_fields)}"
        raise InputError(f"{name}: {known if first['type'] == 'extra_forbidden' else first['msg']}") from error


def _job(number: int, line: Line, folder: Path, output: Path, digest_of: Callable[[Path], str]) -> BulkJob:
    check_prompt(line.prompt)
    if line.box is not None:
        from videomaker.data.subject import parse_box  # late: it loads torch

        parse_box(line.box)
    references = tuple(folder / name for name in line.reference)
    mask = None if line.mask is None else folder / line.mask
    fields = api_fields(line.model_dump())
    pictures = [digest_of(path) for path in (*references, *([] if mask is None else [mask]))]
    digest = sha256(json.dumps([fields, line.name, mask is not None, pictures], sort_keys=True))[:32]
    name = line.name or f"{slug(references[0].stem)}_{slug(line.prompt)}_{line.seed}_{digest[:8]}"
    if Path(name).name != name:
        raise InputError(f"name {name!r}: give a file name, without a folder")
    path = output / (name if name.lower().endswith(".mp4") else f"{name}.mp4")
    check_file_name(path)
    return BulkJob(number, digest, references, mask, fields, path)


def _checked_picture(path: Path) -> str:
    """The digest of a picture that can be read."""
    load_reference(path)
    return sha256_of_file(path)
