"""A model's `generation.json`: how it wants to be sampled when nothing else is said. Light: loads no tensor library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from videomaker.errors import InputError
from videomaker.files import read_json

FILE = "generation.json"
MAX_SIDE = 4096  # pixels of a side of a video, before it is enlarged
MAX_FRAMES = 10_000
MAX_STEPS = 10_000
MAX_GUIDANCE = 1000.0

Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]


class GenerationDefaults(BaseModel):
    """The keys are those of the pipeline's call, with `fps`, `fit` and a note to the user beside them."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    num_frames: Annotated[int, Field(ge=1, le=MAX_FRAMES)] | None = None
    height: Side | None = None
    width: Side | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=MAX_GUIDANCE)] | None = None
    negative_prompt: Annotated[str, Field(max_length=10_000)] | None = None
    fps: Annotated[float, Field(ge=0.1, le=240)] | None = None
    fit: Literal["stretch", "pad", "crop"] | None = None
    note: Annotated[str, Field(max_length=1_000)] | None = None

    def given(self) -> dict[str, Any]:
        """What the file says, without what it leaves open."""
        return self.model_dump(exclude_none=True)


def read_generation_defaults(folder: Path) -> GenerationDefaults:
    """What the file in a model's folder says; all None without one.

    Raises:
        InputError: the file is not JSON, or says something that cannot be.
    """
    path = folder / FILE
    if not path.exists():
        return GenerationDefaults()
    try:
        return GenerationDefaults.model_validate(read_json(path))
    except ValidationError as error:
        raise InputError(f"{path}: {first_problem(error)}") from error


def first_problem(error: ValidationError) -> str:
    """The first thing that pydantic found, on one line."""
    found = error.errors(include_url=False)[0]
    place = ".".join(map(str, found["loc"])) or "the document"
    return f"{place} is {str(found['input'])[:40]!r}: {found['msg'][:1].lower()}{found['msg'][1:]}"
