"""A model made ready for a request: found, loaded, checked, and every open setting filled in."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from videomaker.compiled import Bucket
from videomaker.errors import InputError, first_line
from videomaker.kernels import choose_backend
from videomaker.pipeline import VideoMakerPipeline
from videomaker.weights.sources import pin

from .defaults import generation_defaults, model_folder, resolve_output, resolve_settings
from .finished import fingerprint
from .model_check import check_model, check_parts, try_out
from .parts import build_pipeline, fuse_loras
from .record import component_digests
from .request import Job, ModelSpec, Recipe
from .resolved import ResolvedRecipe, ResolvedSettings

logger = logging.getLogger(__name__)

_SMALL_VOCABULARY = 10_000  # tokens; CLIP's has 49,408
_MOST_SHOWN = 80  # characters of a prompt
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Prepared:
    """A loaded pipeline, the recipe with nothing left open, and the digests of the pipeline's parts."""

    pipe: VideoMakerPipeline
    recipe: ResolvedRecipe
    digests: dict[str, str]
    fingerprint: str | None = None  # of `videomaker.jobs.finished`


def resolve_model(spec: ModelSpec) -> ModelSpec:
    """Replaces the device and dtype `"auto"` by what this machine has; the attention backend's is each layer's choice.

    Models of the hub get the revision that they lead to.

    Raises:
        InputError: a model of the hub is not to be had; the device is unknown or absent, or cannot run the attention
            backend, or has nothing to offload.
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
    adapter, vae = (place and pin(place) for place in (spec.motion_adapter, spec.vae))
    return replace(spec, device=str(device), dtype=dtype, source=pin(spec.source), motion_adapter=adapter, vae=vae)


def _resolve_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = _why_not(name.partition(":")[0]) or first_line(error)
        there = ", ".join(["auto", "cpu", *(kind for kind in ("cuda", "mps") if _why_not(kind) is None)])
        raise InputError(f"device {name!r} cannot be used here, {reason}: choose {there}") from error
    return device


def _why_not(kind: str) -> str | None:
    """Why this machine has no device of a kind; None where it has one, or the kind is another."""
    if kind == "cuda" and not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        return "torch finds no GPU" if built else f"torch {torch.__version__} is built without CUDA"
    if kind == "mps" and not torch.backends.mps.is_available():
        return "torch finds no GPU of Apple's"
    return None


def load_pipeline(spec: ModelSpec) -> VideoMakerPipeline:
    """Loads what `spec` (see `resolve_model`) describes, on its device.

    Raises:
        InputError: a part is missing, damaged, or of another architecture.
    """
    check_model(spec)
    try:
        pipe = build_pipeline(spec, model_folder(spec.source), DTYPES[spec.dtype])
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"memory does not suffice to load model {spec.source!r}") from error
    except Exception as error:  # of damaged folders, every library complains in its own way
        reason = " ".join(str(error).split())[:200]
        reason = f"{type(error).__name__} {reason}" if isinstance(error, KeyError) or not reason else reason
        raise InputError(f"model {spec.source!r} cannot be loaded: {reason}") from error
    check_parts(pipe, spec.source)
    if spec.weights is not None:
        report = pipe.load_videomaker_weights(spec.weights)
        logger.info("%s: %s", spec.weights, "; ".join(str(report).splitlines()))
    fuse_loras(pipe, spec.loras)
    try_out(pipe, ", ".join([spec.source, *filter(None, [spec.weights]), *spec.loras]))
    if not pipe.config.use_pisa:
        logger.warning("model %s was made with use_pisa=False: its frames see no reference in attention", spec.source)
    pipe.set_progress_bar_config(disable=True)
    if spec.offload:
        pipe.enable_model_cpu_offload(device=spec.device)
        return pipe
    return pipe.to(spec.device)


def prepare(asked: Recipe) -> Prepared:
    """Loads the model and fills in everything that was left to it, to the machine, or to the paper.

    Raises:
        InputError: something asked for does not exist or does not fit the model.
    """
    torch.backends.cudnn.deterministic = True  # or a record would not give the same bits again
    model = resolve_model(asked.model)
    pipe = load_pipeline(model)
    defaults, _ = generation_defaults(model_folder(model.source))
    settings = resolve_settings(asked.settings, defaults, pipe.unet.config.sample_size * pipe.vae_scale_factor)
    _check_settings(settings, pipe)
    recipe = ResolvedRecipe(model=model, settings=settings, output=resolve_output(asked.output, settings))
    return Prepared(pipe, recipe, component_digests(pipe), fingerprint(asked.model))


def _check_settings(settings: ResolvedSettings, pipe: VideoMakerPipeline) -> None:
    most_steps = pipe.scheduler.config.num_train_timesteps
    if not 1 <= settings.steps <= most_steps:
        raise InputError(f"{settings.steps} steps: this model's schedule has 1 to {most_steps}")


def unknown_words(tokenizer: Any, prompt: str) -> list[str]:
    """The words of a prompt that a tokenizer of whole words has no token for; CLIP's knows every word by its parts."""
    unknown = getattr(tokenizer, "unk_token", None)
    if unknown is None or len(tokenizer.tokenize("qzxqzx")) != 1 or tokenizer.tokenize("qzxqzx") != [unknown]:
        return []
    return [word for word in _words(prompt) if unknown in tokenizer.tokenize(word)]


def _words(prompt: str) -> list[str]:
    return list(dict.fromkeys(re.findall(r"[^\W_]+", prompt)))


def _is_familiar(tokenizer: Any, prompt: str) -> bool:
    """Whether a small vocabulary, which is of the training's texts, has each word whole; a large one has all words."""
    return len(tokenizer) < _SMALL_VOCABULARY and all(len(tokenizer.tokenize(word)) == 1 for word in _words(prompt))


def warn_of_cut_prompts(pipe: VideoMakerPipeline, prompts: Iterable[str]) -> None:
    """Logs what of a prompt the model does not hear: words that it does not know, and what is cut off.

    The note of the model's makers goes before, unless all prompts are made of words that the model was trained on.
    """
    prompts = list(dict.fromkeys(prompts))
    note = pipe.generation_defaults.note
    if note and not all(_is_familiar(pipe.tokenizer, prompt) for prompt in prompts):
        logger.info(note)
    limit = pipe.tokenizer.model_max_length  # with the start and end tokens
    for prompt in prompts:
        tokens = pipe.tokenizer(prompt).input_ids
        if len(tokens) > limit:
            cut = pipe.tokenizer.decode(tokens[limit - 1 : -1])
            cut = cut if len(cut) <= _MOST_SHOWN else f"{cut[:_MOST_SHOWN]} …"
            logger.warning("a prompt has %d tokens, the model reads %d; cut off: %r", len(tokens), limit, cut)
        if unknown := unknown_words(pipe.tokenizer, prompt):
            logger.warning("words that this model does not know: %s", ", ".join(unknown[:10]))


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
