"""Options that go together: a parameter of a group's type stands for all of the group's options on the command line."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, get_type_hints

from . import options

if TYPE_CHECKING:
    from videomaker.data.subject import Highlight
    from videomaker.jobs.request import ModelSpec, Settings


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """The command as Typer reads it: each group's fields in the place of the group, in their order."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}

    @functools.wraps(command)
    def run(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{field.name: given.pop(field.name) for field in fields(kind)})
        command(**given)

    parameters = [
        one
        for parameter in inspect.signature(command).parameters.values()
        for one in (_parameters(groups[parameter.name]) if parameter.name in groups else [parameter])
    ]
    annotations = {**hints, **{name: hint for kind in groups.values() for name, hint in _hints(kind).items()}}
    parameters = [one.replace(kind=one.KEYWORD_ONLY, annotation=annotations[one.name]) for one in parameters]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # which inspect looks for
    return run


def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _parameters(kind: Any) -> list[inspect.Parameter]:
    return [inspect.Parameter(x.name, inspect.Parameter.KEYWORD_ONLY, default=x.default) for x in fields(kind)]


@dataclass(frozen=True)
class Highlighting:
    """How the subject is found in its picture."""

    highlight: options.HighlightWord = ""
    mask: options.Mask = None
    box: options.Box = None
    models: options.SubjectModels = None

    def asked(self) -> Highlight:
        """What is asked for; false when nothing is.

        Raises:
            InputError: as `Highlight.of`.
        """
        from videomaker.data.subject import Highlight

        return Highlight.of(self.highlight, self.mask, self.box)


@dataclass(frozen=True)
class Model:
    """Which weights, and how they run."""

    model: options.Model = None
    motion_adapter: options.MotionAdapter = None
    weights: options.Weights = None
    vae: options.Vae = None
    lora: options.Loras = None
    dtype: options.Dtype = "auto"
    device: options.Device = "auto"
    attention_backend: options.AttentionBackend = "auto"
    offload: options.Offload = False
    compile: options.Compile = False

    def spec(self) -> ModelSpec:
        """As a request has it."""
        from videomaker.jobs.request import ModelSpec

        return ModelSpec(
            source="default" if self.model is None else self.model,
            motion_adapter=self.motion_adapter,
            weights=self.weights,
            dtype=self.dtype,
            device=self.device,
            attention_backend=self.attention_backend,
            offload=self.offload,
            compile=self.compile,
            vae=self.vae,
            loras=tuple(self.lora or ()),
        )

    def moved(self, old: ModelSpec) -> ModelSpec:
        """`old`, with the places where its files lie now."""
        return replace(
            old,
            source=old.source if self.model is None else self.model,
            motion_adapter=old.motion_adapter if self.motion_adapter is None else self.motion_adapter,
            weights=old.weights if self.weights is None else self.weights,
            vae=old.vae if self.vae is None else self.vae,
            loras=tuple(self.lora) if self.lora else old.loras,
        )


@dataclass(frozen=True)
class Sampling:
    """What the videos are like; None leaves it to the model."""

    steps: options.Steps = None
    guidance: options.Guidance = None
    negative_prompt: options.NegativePrompt = None
    negative_preset: options.NegativePreset = None
    width: options.Width = None
    height: options.Height = None
    frames: options.Frames = None
    fps: options.Fps = None
    fit: options.Fit = None

    def settings(self) -> Settings:
        """As a request has them.

        Raises:
            InputError: a negative prompt and a preset of one are given.
        """
        from videomaker.jobs.negatives import negative_prompt
        from videomaker.jobs.request import Settings

        return Settings(
            steps=self.steps,
            guidance=self.guidance,
            negative_prompt=negative_prompt(self.negative_prompt, self.negative_preset),
            width=self.width,
            height=self.height,
            frames=self.frames,
            fps=self.fps,
            fit=self.fit,
        )


@dataclass(frozen=True)
class Results:
    """How videos are made and written."""

    batch_size: options.BatchSize = 1
    file_format: options.FileFormat = None
    upscale: options.Upscale = None
    contact_sheet: options.ContactSheet = False
    overwrite: options.Overwrite = False
