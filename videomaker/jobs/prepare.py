"""A model made ready for a request: found, loaded, checked, and every open setting filled in."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from videomaker import media
from videomaker.compiled import Bucket
from videomaker.errors import InputError
from videomaker.kernels import choose_backend
from videomaker.pipeline import VideoMakerPipeline

from .defaults import PAPER_SETTINGS, generation_defaults, model_folder
from .record import component_digests
from .request import Job, ModelSpec, Recipe, Settings

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


@dataclass(frozen=True)
class Prepared:
    """A loaded pipeline, the recipe with nothing left open, and the digests of the pipeline's parts."""

    pipe: VideoMakerPipeline
    recipe: Recipe
    digests: dict[str, str]


def resolve_model(spec: ModelSpec) -> ModelSpec:
    """Replaces the device and dtype `"auto"` by what this machine has; the attention backend's is each layer's choice.

    Raises:
        InputError: the device is unknown or absent, or cannot run the attention backend, or has nothing to offload.
    """
    device = _resolve_device(spec.device)
    dtype = ("float16" if device.type == "cuda" else "float32") if spec.dtype == "auto" else spec.dtype
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is unknown: choose from auto, {', '.join(DTYPES)}")
    if spec.offload and device.type == "cpu":
        raise InputError("--offload makes room on a GPU, and the device is the CPU: leave it out")
    try:
        choose_backend(torch.empty(1, 1, 1, 64, device=device, dtype=DTYPES[dtype]), spec.attention_backend)
    except ValueError as error:
        raise InputError(str(error)) from error
    return replace(spec, device=str(device), dtype=dtype)


def _resolve_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} cannot be used here: choose auto, cpu, cuda or mps") from error
    return device


def load_pipeline(spec: ModelSpec) -> VideoMakerPipeline:
    """Loads what `spec` (see `resolve_model`) describes, on its device.

    Raises:
        InputError: a part is missing, damaged, or of another architecture.
    """
    _check_model(spec)
    options: dict[str, Any] = {"torch_dtype": DTYPES[spec.dtype], "attention_backend": spec.attention_backend}
    if spec.motion_adapter is not None:
        options["motion_adapter"] = _adapter_folder(spec.motion_adapter)
    try:
        pipe = VideoMakerPipeline.from_pretrained(model_folder(spec.source), **options)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise InputError(f"model {spec.source!r} cannot be loaded: {error}") from error
    _check_complete(pipe, spec)
    if spec.weights is not None:
        report = pipe.load_videomaker_weights(spec.weights)
        logger.info("%s: %s", spec.weights, "; ".join(str(report).splitlines()))
    pipe.set_progress_bar_config(disable=True)
    if spec.offload:
        pipe.enable_model_cpu_offload(device=spec.device)
        return pipe
    return pipe.to(spec.device)


def _check_model(spec: ModelSpec) -> None:
    """Refuses what is not Stable Diffusion 1.5, AnimateDiff or VideoMaker before its weights are read."""
    try:
        index = json.loads((model_folder(spec.source) / "model_index.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"unknown model {spec.source!r}: give 'default' or a folder in the diffusers format (with model_index.json)"
        ) from error
    unet = (index.get("unet") or [None, None])[1]
    missing = [part for part in _PARTS if not (model_folder(spec.source) / part).is_dir()]
    if unet not in ("UNet2DConditionModel", "UNetMotionModel") or "text_encoder_2" in index:
        kind = index.get("_class_name")
        raise InputError(f"model {spec.source!r} is a {kind}: give a VideoMaker or a Stable Diffusion 1.5 folder")
    if unet == "UNet2DConditionModel" and spec.motion_adapter is None:
        raise InputError(
            f"model {spec.source!r} makes single pictures: give --motion-adapter with AnimateDiff's folder"
        )
    if missing:
        raise InputError(f"model {spec.source!r} has no {missing[0]}/: fetch the whole folder again")


def _check_complete(pipe: VideoMakerPipeline, spec: ModelSpec) -> None:
    """Refuses a model whose files lack tensors; diffusers leaves those without values."""
    for part in ("unet", "vae", "text_encoder"):
        missing = [name for name, parameter in getattr(pipe, part).named_parameters() if parameter.is_meta]
        if missing:
            raise InputError(f"model {spec.source!r} lacks {len(missing)} tensors of {part}, such as {missing[0]}")


def _adapter_folder(folder: str) -> str:
    if not Path(folder, "config.json").is_file():
        raise InputError(f"motion adapter {folder!r} is not a folder in the diffusers format (with config.json)")
    return folder


def prepare(asked: Recipe) -> Prepared:
    """Loads the model and fills in everything that was left to it, to the machine, or to the paper.

    Raises:
        InputError: something asked for does not exist or does not fit the model.
    """
    torch.backends.cudnn.deterministic = True  # or a record would not give the same bits again
    model = resolve_model(asked.model)
    pipe = load_pipeline(model)
    defaults, note = generation_defaults(model_folder(model.source))
    if note:
        logger.warning(note)
    settings = _resolve_settings(asked.settings, defaults, pipe)
    _check_settings(settings, pipe)
    output = asked.output
    if output.upscale is None:
        factor = 1 if output.format == "frames" else media.default_upscale(settings.height, settings.width)
        output = replace(output, upscale=factor)
    return Prepared(pipe, Recipe(model, settings, output), component_digests(pipe))


def _resolve_settings(asked: Settings, defaults: Settings, pipe: VideoMakerPipeline) -> Settings:
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    layers = [asdict(asked), asdict(defaults), asdict(replace(PAPER_SETTINGS, width=side, height=side))]
    return Settings(**{name: next(x[name] for x in layers if x[name] is not None) for name in layers[0]})


def _check_settings(settings: Settings, pipe: VideoMakerPipeline) -> None:
    most_steps = pipe.scheduler.config.num_train_timesteps
    if not 1 <= settings.steps <= most_steps:
        raise InputError(f"{settings.steps} steps: this model's schedule has 1 to {most_steps}")
    if not (math.isfinite(settings.guidance) and math.isfinite(settings.fps) and settings.fps > 0):
        raise InputError(f"guidance {settings.guidance} and fps {settings.fps} must be finite, and fps positive")


def warn_of_cut_prompts(pipe: VideoMakerPipeline, prompts: Iterable[str]) -> None:
    """Logs, for every prompt that is longer than the text encoder reads, what is cut off."""
    limit = pipe.tokenizer.model_max_length  # with the start and end tokens
    for prompt in dict.fromkeys(prompts):
        tokens = pipe.tokenizer(prompt).input_ids
        if len(tokens) > limit:
            cut = pipe.tokenizer.decode(tokens[limit - 1 : -1])
            logger.warning("a prompt has %d tokens, the model reads %d; cut off: %r", len(tokens), limit, cut)


def compile_for(prepared: Prepared, batches: Sequence[Sequence[Job]], artifacts: Path | None = None) -> None:
    """Compiles the pipeline for the shapes of `batches`, where the recipe asks for it.

    Raises:
        InputError: the pipeline cannot be compiled.
    """
    if not (prepared.recipe.model.compile and batches):
        return
    settings = prepared.recipe.settings
    shape = (settings.frames, settings.height, settings.width)
    buckets = [Bucket(*shape, len(batch), len(batch[0].references), settings.guidance > 1) for batch in batches]
    logger.info("%s", prepared.pipe.compile(buckets, saved=artifacts))
