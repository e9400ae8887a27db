"""What a server is told: one TOML file, `VIDEOMAKER_…` variables over it, the command line's flags over those."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from videomaker.errors import InputError

ENVIRONMENT_PREFIX = "VIDEOMAKER_"
Names = Annotated[tuple[str, ...], NoDecode]  # a variable holds them with commas between, not as JSON


class Shape(BaseModel):
    """A declared shape: what a compiled worker is warmed up for and, where any is declared, all that is accepted.

    Args:
        num_frames, height, width: of the video, in frames and pixels.
        num_references: pictures of the subject.
        batch: videos of this shape that go through the model together; a batch is padded up to it.
        guidance: whether the videos are guided (guidance scale above 1).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_frames: int = Field(ge=1, le=1024)
    height: int = Field(ge=8, le=8192)
    width: int = Field(ge=8, le=8192)
    num_references: int = Field(default=1, ge=1, le=16)
    batch: int = Field(default=1, ge=1, le=64)
    guidance: bool = True

    def __str__(self) -> str:
        pictures = f", {self.num_references} pictures" if self.num_references > 1 else ""
        return (
            f"{self.num_frames} frames of {self.width}x{self.height}{pictures}{'' if self.guidance else ', unguided'}"
        )


class Lora(BaseModel):
    """A LoRA that a loaded model takes on and off.

    Args:
        name: what the API calls the model with it.
        file: `.safetensors` or `.bin`.
        scale: by which it is multiplied.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=100)
    file: Path
    scale: float = Field(default=1.0, allow_inf_nan=False)


class ServedModel(BaseModel):
    """One of several models, with workers of its own. What it leaves out is as the server's settings say.

    Args:
        name: what the API calls it; empty: the folder's name.
        loras: that it takes on and off.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    name: str = Field(default="", max_length=100)
    model: str
    motion_adapter: str | None = None
    weights: str | None = None
    dtype: Literal["auto", "float32", "float16", "bfloat16"] | None = None
    attention_backend: str | None = None
    devices: tuple[str, ...] | None = None
    workers: int | None = Field(default=None, ge=0)
    compile: bool | None = None
    artifacts: Path | None = None
    batch: int | None = Field(default=None, ge=1, le=64)
    shapes: tuple[Shape, ...] | None = None
    loras: tuple[Lora, ...] = ()


class ServeConfig(BaseSettings):
    """The settings of a server; `docs/serving.md` explains them with examples."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix=ENVIRONMENT_PREFIX)

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535, description="0 takes a free one.")
    data: Path = Field(default_factory=lambda: platformdirs.user_data_path("videomaker"))
    database: str = Field("", description="An SQLAlchemy URL; empty: SQLite in the data folder.")
    files: str = Field("", description="A folder or an object store's URL; empty: files/ in the data folder.")
    files_options: dict[str, str] = Field({}, description="Of the object store: endpoint, region, …")
    files_public_endpoint: str = Field("", description="Where clients reach the object store, if not at endpoint.")
    files_links: bool = Field(True, description="Videos are fetched from the object store itself, by signed links.")
    allowed_hosts: Names = Field((), description="Host names that browsers may use; loopback's are known.")

    model: str = Field("default", description="'default' is the embedded model; else a folder.")
    model_name: str = Field("", description="What the API calls it; empty: the folder's name.")
    models: tuple[ServedModel, ...] = Field((), description="Several models, in place of model.")
    only: Names = Field((), description="Of several models those whose workers are started here; empty: all.")
    loras: tuple[Lora, ...] = Field((), description="LoRAs that the model takes on and off, by name.")
    motion_adapter: str | None = None
    weights: str | None = None
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    attention_backend: str = "auto"
    devices: Names = Field((), description="A worker each, such as cuda:0; empty: every CUDA device.")
    compile: bool = False
    artifacts: Path | None = None
    batch: int = Field(1, ge=1, le=64, description="Videos of one shape that share a pass; padded up to it.")
    batch_wait: float = Field(0.2, ge=0, le=60, description="Seconds that the oldest job waits for company.")
    shapes: tuple[Shape, ...] = ()
    renderer: Literal["model", "fake"] = Field("model", description="'fake' makes coloured frames, for load tests.")
    fake_seconds: float = Field(0.0, ge=0, description="What a step of the fake renderer takes.")
    workers: int | None = Field(None, ge=0, description="Worker processes here; none: one for each device.")
    engine: Literal["local", "external", "ray"] = Field(
        "local", description="Who makes the videos: workers of this machine, others of the same database, or Ray Serve."
    )

    idle_exit: float | None = Field(None, ge=0, description="Seconds without work after which a worker ends.")

    max_side: int = Field(1024, ge=8)
    max_steps: int = Field(100, ge=1)
    max_references: int = Field(4, ge=1)
    max_pixels: int = Field(24_000_000, ge=1, description="Of an uploaded picture, by its header.")
    max_body_mib: float = Field(32, gt=0)
    upload_seconds: float = Field(60, gt=0, description="Within which a request's body must have come.")
    require_consent: bool = False
    request_check: str | None = Field(None, description="module:function that may refuse a request.")
    frames_check: str | None = Field(None, description="module:function that may refuse finished frames.")

    highlight_models: Path | None = Field(
        None, description="Folder of grounding-dino/ and sam/, to find subjects by word."
    )
    certificate: Path | None = Field(None, description="PEM, its chain after it: signs every video (C2PA).")
    certificate_key: Path | None = Field(None, description="PEM: the certificate's private key, not encrypted.")
    timestamp_url: str = Field("", description="Of an RFC 3161 authority that vouches for when a video was signed.")

    max_wait: float = Field(600, ge=0, description="Expected seconds in the queue above which requests are refused.")
    max_active: int = Field(200, ge=1, description="Unfinished videos of one key, where the key says nothing else.")
    max_per_hour: int | None = Field(None, ge=1)
    merge_retries: bool = Field(True, description="A client's own retry without a key gets the first try's job.")
    assumed_seconds: float = Field(10, gt=0, description="What a video is taken to cost before one was measured.")
    lease_seconds: float = Field(30, ge=1)
    max_attempts: int = Field(3, ge=1)
    step_timeout: float = Field(600, gt=0)
    drain_seconds: float = Field(60, ge=0, description="What a worker has to finish its batch when told to stop.")
    keep_hours: float | None = Field(None, gt=0, description="Until a finished video is removed; none: kept.")
    min_free_mib: float = Field(512, ge=0, description="Free disk below which requests are refused.")

    log_format: Literal["auto", "console", "json"] = "auto"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    telemetry: bool = Field(False, description="OpenTelemetry traces, by the OTEL_… variables.")

    @field_validator("allowed_hosts", "devices", "only", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then the environment, then the file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @property
    def database_url(self) -> str:
        """Of SQLAlchemy."""
        return self.database or f"sqlite:///{self.data.absolute() / 'videomaker.db'}"

    @property
    def files_url(self) -> str:
        """Of `Store`."""
        return self.files or str(self.data.absolute() / "files")

    @property
    def name(self) -> str:
        """What the API calls the model."""
        return self.model_name or ("videomaker-default" if self.model == "default" else Path(self.model).name)

    @property
    def served(self) -> tuple[ServeConfig, ...]:
        """The settings of each model alone, the first of them the one that is used where none is asked for."""
        if not self.models:
            return (self,)
        given = [model.model_dump(exclude_none=True, exclude={"name", "loras", "shapes"}) for model in self.models]
        own = [
            {"model_name": model.name, "loras": model.loras, "shapes": model.shapes or self.shapes, "models": ()}
            for model in self.models
        ]
        return tuple(self.model_copy(update={**a, **b}) for a, b in zip(given, own, strict=True))

    @property
    def served_here(self) -> tuple[ServeConfig, ...]:
        """Those of `served` whose workers belong to this machine."""
        return tuple(one for one in self.served if not self.only or one.name in self.only)

    @property
    def names(self) -> list[str]:
        """What the API calls the models, with and without their LoRAs."""
        return [name for one in self.served for name in (one.name, *(lora.name for lora in one.loras))]

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def load_config(file: Path | None = None, **flags: Any) -> ServeConfig:
    """The resolved settings; flags that are None are left to the environment, the file and the defaults.

    Raises:
        InputError: a value cannot be used, a setting is unknown, or the file is missing or not TOML.
    """
    if file is not None and not file.is_file():
        raise InputError(f"configuration {file} does not exist: give a TOML file")

    class FromFile(ServeConfig):
        model_config = SettingsConfigDict(toml_file=file)

    try:
        read = FromFile(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        why = "there is no such setting; see --show-config" if first["type"] == "extra_forbidden" else first["msg"]
        raise InputError(f"setting {name} = {first['input']!r}: {why}") from error
    except ValueError as error:  # of tomllib, and of a variable that is no JSON where a list is asked for
        raise InputError(f"the configuration {file or ''} cannot be read: {error}") from error
    config = ServeConfig.model_construct(**{name: getattr(read, name) for name in ServeConfig.model_fields})
    if config.models and (config.model != "default" or config.model_name or config.loras):
        raise InputError("models is given: say model, model_name and loras there, in a [[models]] table each")
    if twice := next((name for name in config.names if config.names.count(name) > 1), None):
        raise InputError(f"two models are called {twice!r}: give each a name, and each LoRA")
    if unknown := set(config.only) - {one.name for one in config.served}:
        raise InputError(f"only names {', '.join(sorted(unknown))}: there is no such model here")
    return config
