"""What a model can make, read from its folder without loading it: the API accepts by it before a worker is warm."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from videomaker.errors import InputError
from videomaker.files import read_json
from videomaker.jobs.defaults import PAPER_SETTINGS, generation_defaults, model_folder
from videomaker.model_files import read_sizes

from .config import ServeConfig, Shape

# The API's words, which are the pipeline's, and those of `videomaker.jobs`.
_SETTINGS = {
    "num_frames": "frames",
    "fps": "fps",
    "height": "height",
    "width": "width",
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "negative_prompt": "negative_prompt",
    "fit": "fit",
}


@dataclass(frozen=True)
class ModelFacts:
    """A model's name, defaults and limits.

    Args:
        name: in the API.
        defaults: `num_frames`, `fps`, `height`, `width`, `num_inference_steps`, `guidance_scale`, `negative_prompt`,
            `fit`.
        factor: pixels of a latent's side; sizes are multiples of it.
        max_positions: frames and references together.
        max_steps: of the schedule.
        note: what its makers tell users.
        base: the model whose workers make it; empty: itself.
        lora: that is put on it.
        shapes: the shapes that are accepted alone; empty: any.
    """

    name: str
    defaults: dict[str, Any]
    factor: int
    max_positions: int
    max_steps: int
    note: str | None = None
    base: str = ""
    lora: str | None = None
    shapes: tuple[Shape, ...] = ()

    @property
    def workers(self) -> str:
        """The model that its workers call themselves by."""
        return self.base or self.name


def describe_all(config: ServeConfig) -> dict[str, ModelFacts]:
    """Every model of a server by the API's name, each followed by its LoRAs; the first is the default.

    Raises:
        InputError: a folder is not a model in the diffusers format, or a LoRA's file is not there.
    """
    found = {}
    for one in config.served:
        facts = describe_model(one)
        found[facts.name] = facts = replace(facts, shapes=declared_shapes(one, facts))
        for lora in one.loras:
            if not lora.file.is_file():
                raise InputError(f"LoRA {lora.name!r}: file {lora.file} does not exist: give its path")
            found[lora.name] = replace(facts, name=lora.name, base=facts.name, lora=lora.name)
    return found


def describe_model(config: ServeConfig) -> ModelFacts:
    """The facts of the model that a server serves.

    Raises:
        InputError: the folder is not a model in the diffusers format.
    """
    folder = model_folder(config.model)
    if not (folder / "model_index.json").is_file():
        raise InputError(f"unknown model {config.model!r}: give 'default' or a folder in the diffusers format")
    factor, side, positions = read_sizes(folder, Path(config.motion_adapter) if config.motion_adapter else None)
    schedule = read_json(folder / "scheduler" / "scheduler_config.json")
    try:
        train_steps = int(schedule["num_train_timesteps"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"the configurations of {folder} cannot be used: {error!r}") from error
    own, note = generation_defaults(folder)
    settings = {**asdict(PAPER_SETTINGS), "height": side, "width": side}
    settings.update({name: value for name, value in asdict(own).items() if value is not None})
    return ModelFacts(
        name=config.name,
        defaults={name: settings[ours] for name, ours in _SETTINGS.items()},
        factor=factor,
        max_positions=positions or 32,
        max_steps=min(config.max_steps, train_steps),
        note=note,
    )


def declared_shapes(config: ServeConfig, model: ModelFacts) -> tuple[Shape, ...]:
    """The shapes that are accepted alone: those of the settings, or the model's own where it is compiled."""
    if config.shapes or not config.compile:
        return config.shapes
    sizes = {name: model.defaults[name] for name in ("num_frames", "height", "width")}
    return (Shape(**sizes, batch=config.batch, guidance=model.defaults["guidance_scale"] > 1),)


@dataclass(frozen=True)
class Bucket:
    """What jobs must have in common to share a pass; its text is the column `bucket`."""

    model: str
    num_frames: int
    height: int
    width: int
    num_references: int
    guided: bool
    steps: int

    def __str__(self) -> str:
        shape = f"{self.num_frames}x{self.height}x{self.width}"
        return f"{self.model}/{shape}/r{self.num_references}/{'guided' if self.guided else 'unguided'}/{self.steps}"

    @classmethod
    def of(cls, request: dict[str, Any]) -> Bucket:
        """The bucket of an accepted request."""
        shape = (request["num_frames"], request["height"], request["width"], len(request["references"]))
        return cls(request["model"], *shape, request["guidance_scale"] > 1, request["num_inference_steps"])

    def matches(self, shape: Shape) -> bool:
        """Whether a declared shape is this bucket's."""
        mine = (self.num_frames, self.height, self.width, self.num_references, self.guided)
        return mine == (shape.num_frames, shape.height, shape.width, shape.num_references, shape.guidance)


def batch_size(bucket: str, config: ServeConfig, shapes: tuple[Shape, ...]) -> int:
    """Videos that go through the model together for jobs of a bucket: one declared size, whatever the load."""
    for shape in shapes:
        guided = "guided" if shape.guidance else "unguided"
        part = f"/{shape.num_frames}x{shape.height}x{shape.width}/r{shape.num_references}/{guided}/"
        if part in bucket:
            return shape.batch
    return config.batch
