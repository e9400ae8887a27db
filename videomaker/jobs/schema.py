"""What a record may say: checked when it is read, whoever wrote it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, field_validator, model_validator

from videomaker.generation import MAX_FRAMES, MAX_GUIDANCE, MAX_STEPS, Side

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, Field(max_length=10_000)]


def _place(value: object) -> str:
    if isinstance(value, str) and 1 <= len(value) <= 4096 and "\x00" not in value:
        return value
    raise ValueError("should be a path of 1 to 4096 characters")


Place = Annotated[str, PlainValidator(_place)]  # pydantic's own strings have to be UTF-8, names of files need not


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class _Open(BaseModel):
    """Of which later versions may say more."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class ReferenceRecord(_Open):
    """A picture and its content."""

    path: Place
    sha256: Sha256


class VideoRecord(_Open):
    """What tells a video of a batch from the others."""

    prompt: Annotated[str, Field(min_length=1, max_length=10_000)]
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    references: Annotated[list[ReferenceRecord], Field(max_length=1000)]


class ModelRecord(_Part):
    """`request.ModelSpec`, with nothing left open."""

    source: Place
    motion_adapter: Place | None
    weights: Place | None
    dtype: Literal["float32", "float16", "bfloat16"]
    device: Annotated[str, Field(pattern=r"^[a-z]{1,16}(:\d{1,3})?$")]
    attention_backend: Annotated[str, Field(pattern=r"^[a-z_]{1,32}$")]
    offload: bool
    compile: bool
    vae: Place | None = None  # from version 2 on, as the next
    loras: Annotated[list[Place], Field(max_length=64)] = []


class SettingsRecord(_Part):
    """`request.Settings`, with nothing left open."""

    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)]
    guidance: Annotated[float, Field(ge=0, le=MAX_GUIDANCE)]
    negative_prompt: Text
    width: Side
    height: Side
    frames: Annotated[int, Field(ge=1, le=MAX_FRAMES)]
    fps: Annotated[float, Field(ge=0.1, le=240)]
    fit: Literal["stretch", "pad", "crop"]


class OutputRecord(_Part):
    """`request.Output`, with nothing left open."""

    format: Literal["mp4", "gif", "frames"]
    upscale: Annotated[int, Field(ge=1, le=64)]


class BatchRecord(_Part):
    """The videos that went through the model together, and which of them this is."""

    index: Annotated[int, Field(ge=0)]
    videos: Annotated[list[VideoRecord], Field(min_length=2, max_length=10_000)]

    @model_validator(mode="after")
    def _index_is_one_of_them(self) -> BatchRecord:
        if self.index >= len(self.videos):
            raise ValueError(f"index {self.index} of {len(self.videos)} videos")
        return self


class MachineRecord(_Open):
    """What of the machine changes bits and can be set."""

    threads: Annotated[int, Field(ge=1, le=512)]


class VideoFileRecord(VideoRecord):
    """The JSON beside a video."""

    record_version: int
    video: Annotated[str, Field(min_length=1, max_length=255)]
    model: ModelRecord
    settings: SettingsRecord
    output: OutputRecord
    components_sha256: Annotated[dict[str, Sha256], Field(min_length=1, max_length=32)]
    batch: BatchRecord | None
    machine: MachineRecord
    video_sha256: Sha256

    @field_validator("video")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if name in (".", "..") or "/" in name or "\0" in name:
            raise ValueError("a name without folders is wanted")
        return name

    @model_validator(mode="after")
    def _is_its_batch_s_video(self) -> VideoFileRecord:
        if self.batch is not None:
            own = self.batch.videos[self.batch.index]
            if (own.prompt, own.seed, own.references) != (self.prompt, self.seed, self.references):
                raise ValueError("prompt, seed or references differ from those of the batch")
        return self
