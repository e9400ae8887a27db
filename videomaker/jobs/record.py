"""What a video was made from: the JSON beside it, which is enough to make it again bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from videomaker.digests import sha256_of_all
from videomaker.errors import InputError
from videomaker.files import read_json, sha256, to_json
from videomaker.generation import first_problem

from .places import record_path
from .request import Job, ModelSpec, Output, Recipe, Settings
from .schema import VideoFileRecord

if TYPE_CHECKING:
    import torch

__all__ = [
    "RECORD_VERSION", "check_digests", "component_digests", "describe_video", "difference", "file_digest",
    "make_record", "read_record", "record_path", "recorded_batch", "recorded_recipe", "write_record",
]  # fmt: skip

# 1: the reference's noise was drawn before the frames'; replayed so (`videomaker.jobs.draws`).
# 2: the frames' first.
RECORD_VERSION = 2


def component_digests(pipe: Any) -> dict[str, str]:
    """SHA-256 of each part of a pipeline as it is in memory, whatever files it came from."""
    return {
        **{name: _module_digest(getattr(pipe, name)) for name in ("unet", "vae", "text_encoder")},
        "tokenizer": _json_digest(pipe.tokenizer.get_vocab()),
        "configuration": _json_digest(_configuration(pipe)),
    }


def _configuration(pipe: Any) -> dict[str, Any]:
    """What no tensor tells but the pixels depend on."""
    return {
        "scheduler": {key: value for key, value in pipe.scheduler.config.items() if not key.startswith("_")},
        "scaling_factor": pipe.vae.config.scaling_factor,
        "reference_cross_attention": pipe.config.reference_cross_attention,
        **({} if pipe.config.use_pisa else {"use_pisa": False}),  # said where it is off: older records stay valid
    }


def _module_digest(module: torch.nn.Module) -> str:
    return sha256_of_all(_weights_in_order(module))


def _weights_in_order(module: torch.nn.Module) -> Iterator[Any]:
    import torch  # a record is read, and a wrong one refused, without it

    for name, tensor in sorted(module.state_dict().items()):
        yield f"{name} {tensor.dtype} {tuple(tensor.shape)}\n"
        yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _json_digest(value: Any) -> str:
    return sha256_of_all([json.dumps(value, sort_keys=True, default=str)])


def file_digest(path: Path) -> str:
    """SHA-256 of a file, or of the files of a folder one after the other by name."""
    if not path.is_dir():
        return sha256(path)
    return _json_digest([sha256(file) for file in sorted(path.iterdir())])


def make_record(batch: Sequence[Job], index: int, recipe: Recipe, digests: dict[str, str]) -> dict[str, Any]:
    """The record of one video of a batch, but for the digest of the video itself.

    A video's bits depend on what it was batched with, because matrix products of another size add up in another
    order: so the record of a batched video names the others as well.
    """
    videos = [_describe(job) for job in batch]
    return describe_video(batch[index].path.name, videos, index, recipe, digests)


def describe_video(
    name: str, videos: Sequence[dict[str, Any]], index: int, recipe: Recipe, digests: dict[str, str]
) -> dict[str, Any]:
    """The record of `make_record`, for references that are no files here.

    Args:
        name: of the video's file.
        videos: of the batch: `prompt`, `seed` and `references`, each with `path` and `sha256`.
        index: of the video among them.
        recipe: with nothing left open.
        digests: of `component_digests`.
    """
    import torch  # as above

    from videomaker.environment import machine, versions

    return {
        "record_version": RECORD_VERSION,
        "video": name,
        **videos[index],
        **asdict(recipe),
        "components_sha256": digests,
        "batch": {"index": index, "videos": list(videos)} if len(videos) > 1 else None,
        "versions": versions(),
        "machine": machine(torch.device(recipe.model.device)),
    }


def _describe(job: Job) -> dict[str, Any]:
    references = [{"path": str(path.resolve()), "sha256": sha256(path)} for path in job.references]
    return {"prompt": job.prompt, "seed": job.seed, "references": references}


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Writes a record as JSON."""
    path.write_text(to_json(record, indent=2) + "\n", encoding="utf-8")


def read_record(path: Path) -> dict[str, Any]:
    """Reads a record.

    Raises:
        InputError: the file is missing, or not a record of a version that is understood.
    """
    try:
        record = read_json(path)
        if record.get("record_version") not in range(1, RECORD_VERSION + 1):
            version = str(record.get("record_version"))[:40]
            raise InputError(f"its version is {version}, this program reads 1 to {RECORD_VERSION}")
        VideoFileRecord.model_validate(record)
    except ValidationError as error:
        raise InputError(f"{path} is not the record of a video: {first_problem(error)}") from error
    except InputError as error:
        raise InputError(f"{path} is not the record of a video: {error}") from error
    return record


def difference(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """The first thing that decides a video's content and differs between two records; None when nothing does."""
    if old["record_version"] != new["record_version"]:
        return "an earlier version, which drew its noise in another order"
    for part in ("prompt", "seed", "settings", "output", "components_sha256"):
        if old[part] != new[part]:
            return _first_difference(part, old[part], new[part])
    if [x["sha256"] for x in old["references"]] != [x["sha256"] for x in new["references"]]:
        return "another reference"
    return None


def _first_difference(name: str, old: Any, new: Any) -> str:
    if name == "components_sha256":
        return "another model"
    if not isinstance(old, dict):
        return f"{name} {old!r}, now {new!r}"
    key = next(key for key in old if old[key] != new.get(key))
    return _first_difference(key, old[key], new.get(key))


def recorded_recipe(record: dict[str, Any]) -> Recipe:
    """The model, settings and output of a record."""
    model = {**record["model"], "loras": tuple(record["model"].get("loras", ()))}
    return Recipe(ModelSpec(**model), Settings(**record["settings"]), Output(**record["output"]))


def recorded_batch(record: dict[str, Any], path: Path, references: Sequence[Path] = ()) -> tuple[list[Job], int]:
    """The jobs of a record's batch and the index of its video among them.

    Args:
        record: of `read_record`.
        path: where the video goes.
        references: pictures that have moved; they are recognised by their content.

    Raises:
        InputError: a reference is missing or has changed.
    """
    moved = {sha256(reference): reference for reference in references}
    batch = record["batch"] or {"index": 0, "videos": [record]}
    jobs = [
        Job(tuple(_find(x, moved) for x in video["references"]), video["prompt"], video["seed"], path)
        for video in batch["videos"]
    ]
    return jobs, batch["index"]


def _find(reference: dict[str, str], moved: dict[str, Path]) -> Path:
    if path := moved.get(reference["sha256"]):
        return path
    path = Path(reference["path"])
    if not path.is_file():
        raise InputError(f"reference {path} does not exist any more: give it with --reference")
    if sha256(path) != reference["sha256"]:
        raise InputError(f"reference {path} has changed since the video was made: give the old one with --reference")
    return path


def check_digests(record: dict[str, Any], digests: dict[str, str]) -> None:
    """Makes sure that a model is the one a record was made with.

    Raises:
        InputError: a component differs.
    """
    recorded = record["components_sha256"]
    changed = [name for name in recorded if digests.get(name) != recorded[name]]
    if changed:
        raise InputError(
            f"the model differs from the one that made this video in: {', '.join(changed)}; "
            "give the old one with --model, --motion-adapter, --weights, --vae and --lora"
        )
