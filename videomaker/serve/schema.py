"""The API's words: what a request may hold, and what is answered. OpenAI's Videos, and our own fields beside it."""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from videomaker.generation import MAX_GUIDANCE

from .config import ServeConfig, Shape
from .models import ModelFacts
from .problems import ApiError

Consent = Literal["self", "permission", "synthetic", "not_a_person"]
Prompt = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=4000)]
MAX_SEED = 2**63 - 1
VARIANTS = ("video", "thumbnail", "spritesheet", "record", "reference")


class VideoRequest(BaseModel):
    """A video to make; what is left out is the model's own default.

    Multipart forms send every field as text; lists as `name[]`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    prompt: Prompt = Field(description="What happens in the video.", examples=["a big creature over a meadow"])
    model: str | None = Field(None, description="One of /v1/models.", max_length=128)
    seconds: float | None = Field(None, gt=0, le=600, description="Length; num_frames says it exactly.")
    size: str | None = Field(
        None, pattern=r"^\d{1,5}x\d{1,5}$", description="WIDTHxHEIGHT in pixels.", examples=["512x512"]
    )
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="Drawn, and told, when left out.")
    num_inference_steps: int | None = Field(None, ge=1, le=10_000)
    guidance_scale: float | None = Field(None, ge=0, le=MAX_GUIDANCE, allow_inf_nan=False)
    negative_prompt: Annotated[str, StringConstraints(strip_whitespace=True, max_length=4000)] | None = None
    num_frames: int | None = Field(None, ge=1, le=1024)
    fps: float | None = Field(None, ge=0.1, le=240, allow_inf_nan=False)
    fit: Literal["stretch", "pad", "crop"] | None = Field(None, description="How a picture gets the video's shape.")
    highlight: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)] | None = Field(
        None, description="A word for the subject, which is put on white.", examples=["dog"]
    )
    box: str | None = Field(
        None,
        max_length=200,
        description="x1,y1,x2,y2 in pixels of the picture, which is cropped to it and put on white.",
    )
    consent: Consent | None = Field(None, description="Why the subject may be shown; kept in the record.")
    reference_of: str | None = Field(
        None, max_length=64, description="A video of yours whose pictures are used again, in place of input_reference."
    )

    @field_validator("box", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return ",".join(map(str, value)) if isinstance(value, list) else value

    @field_validator("prompt", "negative_prompt")
    @classmethod
    def _printable(cls, text: str | None) -> str | None:
        if text and "\0" in text:
            raise ValueError("holds a NUL character")
        return text


def choose_model(name: str | None, models: dict[str, ModelFacts]) -> ModelFacts:
    """The model of a name, or the first.

    Raises:
        ApiError: 404, naming those that there are.
    """
    chosen = next(iter(models.values())) if name is None else models.get(name)
    if chosen is None:
        names = ", ".join(map(repr, models))
        raise ApiError(404, f"there is no model {str(name)[:128]!r}: choose {names}", "model", "model_not_found")
    return chosen


def resolve(asked: VideoRequest, num_references: int, model: ModelFacts, config: ServeConfig) -> dict[str, Any]:
    """The request with nothing left open, as it is stored (without the references).

    Raises:
        ApiError: 400; the message names the value, its limit and the parameter.
    """
    fill = lambda name: model.defaults[name] if getattr(asked, name) is None else getattr(asked, name)
    width, height = _size(asked, model, config)
    fps = fill("fps")
    request = {
        "prompt": asked.prompt,
        "negative_prompt": fill("negative_prompt"),
        "model": model.name,
        "lora": model.lora,
        "num_frames": _num_frames(asked, model, fps, num_references),
        "height": height,
        "width": width,
        "num_inference_steps": fill("num_inference_steps"),
        "guidance_scale": fill("guidance_scale"),
        "fps": fps,
        "fit": fill("fit"),
        "seed": secrets.randbelow(2**31) if asked.seed is None else asked.seed,
        "consent": asked.consent,
    }
    if request["num_inference_steps"] > model.max_steps:
        steps = request["num_inference_steps"]
        raise ApiError(400, f"{steps} steps: at most {model.max_steps} here", "num_inference_steps")
    if config.require_consent and asked.consent is None:
        raise ApiError(400, "say why the subject may be shown: consent is one of self, permission, synthetic, "
                       "not_a_person", "consent", "consent_required")  # fmt: skip
    return request


def _size(asked: VideoRequest, model: ModelFacts, config: ServeConfig) -> tuple[int, int]:
    if asked.size is None:
        return model.defaults["width"], model.defaults["height"]
    width, height = map(int, asked.size.split("x"))
    if min(width, height) < model.factor or width % model.factor or height % model.factor:
        raise ApiError(
            400, f"size {asked.size}: both sides are multiples of {model.factor}, from {model.factor}", "size"
        )
    if max(width, height) > config.max_side:
        raise ApiError(400, f"size {asked.size}: at most {config.max_side} pixels a side", "size")
    return width, height


def _num_frames(asked: VideoRequest, model: ModelFacts, fps: float, num_references: int) -> int:
    most = model.max_positions - num_references
    if asked.num_frames is not None and asked.seconds is not None and asked.num_frames != round(asked.seconds * fps):
        raise ApiError(400, f"{asked.seconds:g} s at {fps:g} frames a second are not {asked.num_frames} frames: "
                       "give one of seconds and num_frames", "seconds")  # fmt: skip
    frames = asked.num_frames or model.defaults["num_frames"]
    if asked.num_frames is None and asked.seconds is not None:
        frames = max(1, round(asked.seconds * fps))
    if frames > most:
        param = "seconds" if asked.num_frames is None and asked.seconds is not None else "num_frames"
        raise ApiError(
            400, f"{frames} frames: this model makes at most {most} ({most / fps:g} s at {fps:g} a second)", param
        )
    return frames


def check_declared(request: dict[str, Any], shapes: tuple[Shape, ...], num_references: int) -> None:
    """Refuses a shape that is not declared, where any is.

    Raises:
        ApiError: 400, naming the declared.
    """
    asked = Shape(
        num_frames=request["num_frames"], height=request["height"], width=request["width"],
        num_references=num_references, guidance=request["guidance_scale"] > 1,
    )  # fmt: skip
    if shapes and asked not in [shape.model_copy(update={"batch": 1}) for shape in shapes]:
        names = "; ".join(map(str, shapes))
        raise ApiError(400, f"{asked} is not served here; declared: {names}", "size", "undeclared_shape")


class ErrorBody(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(BaseModel):
    """Every answer that is not 2xx or 3xx."""

    error: ErrorBody


class JobError(BaseModel):
    """Why a video failed."""

    code: str
    message: str


class Video(BaseModel):
    """A job and, once completed, its video."""

    id: str = Field(examples=["video_0199c1f2a4b87c0e9f31"])
    object: Literal["video"] = "video"
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int = Field(description="Percent of the steps.")
    model: str
    prompt: str
    seconds: str
    size: str
    created_at: int
    completed_at: int | None = None
    expires_at: int | None = None
    error: JobError | None = None
    remixed_from_video_id: str | None = None
    queue_position: int | None = Field(None, description="Jobs that go first, while queued.")
    eta_seconds: float | None = Field(None, description="Expected until completed, while queued or in progress.")
    step: int
    steps: int
    seed: int
    num_frames: int
    fps: float
    num_inference_steps: int
    guidance_scale: float
    negative_prompt: str
    fit: str
    num_references: int
    consent: str | None = None
    signed: bool = Field(False, description="Whether the mp4 holds Content Credentials (C2PA).")
    cancel_requested: bool = False
    links: dict[str, str] = Field({}, description="Signed for a while: for players and pictures, which send no key.")


class VideoList(BaseModel):
    """A page of videos, newest first unless asked otherwise."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(BaseModel):
    """The video and its files are gone."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: bool = True


class Model(BaseModel):
    """A model and what it makes by default."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "videomaker"
    parent: str | None = Field(None, description="The model that this one is, with a LoRA put on.")
    ready: bool = Field(description="Whether a worker is warm.")
    workers: int = Field(0, description="That are warm.")
    defaults: dict[str, Any]
    limits: dict[str, Any]
    shapes: list[dict[str, Any]] = Field(description="Where any are declared, no others are served.")
    note: str | None = None


class ModelList(BaseModel):
    """What is served here."""

    object: Literal["list"] = "list"
    data: list[Model]
