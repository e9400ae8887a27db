"""Whether a video is there already, told from its record and the model's files, before any library loads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from videomaker.errors import InputError
from videomaker.files import sha256

from .defaults import model_folder, resolve_output, settings_without_model
from .model_check import split_lora
from .places import record_path
from .record import RECORD_VERSION, read_record
from .request import Job, ModelSpec, Recipe


def fingerprint(spec: ModelSpec) -> str:
    """A digest of what a model is asked to be and of its files: names, sizes and times, which is quick to tell.

    Equal fingerprints mean the same model; others may, and then the weights themselves are compared.
    """
    places = [model_folder(place) for place in (spec.source, spec.motion_adapter, spec.weights, spec.vae) if place]
    places += [split_lora(lora)[0] for lora in spec.loras]
    files = sorted(file for place in places for file in ([place] if place.is_file() else place.rglob("*")))
    states = [(str(file.resolve()), *_state(file)) for file in files if file.is_file()]
    return hashlib.sha256(json.dumps([asdict(spec), states]).encode()).hexdigest()


def _state(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def all_finished(jobs: Sequence[Job], recipe: Recipe) -> bool:
    """Whether every video is there, made from exactly this; False leaves the question to `render.pending_jobs`."""
    if not all(job.path.exists() and record_path(job.path).exists() for job in jobs):
        return False
    try:
        settings = settings_without_model(recipe.model, recipe.settings)
        if settings is None:
            return False
        wanted = {
            "record_version": RECORD_VERSION,
            "settings": asdict(settings),
            "output": asdict(resolve_output(recipe.output, settings)),
            "model_fingerprint": fingerprint(recipe.model),
        }
        return all(_is_finished(job, wanted) for job in jobs)
    except (InputError, OSError):
        return False


def _is_finished(job: Job, wanted: dict) -> bool:
    record = read_record(record_path(job.path))
    digests = [sha256(path) for path in job.references]
    return (
        (record["prompt"], record["seed"]) == (job.prompt, job.seed)
        and [reference["sha256"] for reference in record["references"]] == digests
        and all(record.get(key) == value for key, value in wanted.items())
    )
