"""Where a pipeline comes from: folders, other pipelines, single files, checkpoints; and where it goes."""

import os
from pathlib import Path
from typing import Any, Self, cast

import torch
from diffusers import AnimateDiffPipeline, DDIMScheduler, DiffusionPipeline, MotionAdapter
from diffusers.utils import logging

from videomaker.environment import dtype_option
from videomaker.errors import InputError
from videomaker.generation import FILE, read_generation_defaults
from videomaker.model_files import check_model_files
from videomaker.weights import CoverageReport, load_into, load_text_encoder, read_state_dict
from videomaker.weights.left_out import check_all_loaded

from .parts import Parts

_LOG = logging.get_logger(__name__)
_DIFFUSERS_LOG = logging.get_logger("diffusers.pipelines.pipeline_utils")

# AnimateDiff's schedule for SD 1.5 (https://arxiv.org/abs/2307.04725), which the paper keeps.
ANIMATEDIFF_SCHEDULE = {
    "clip_sample": False,
    "timestep_spacing": "linspace",
    "beta_schedule": "linear",
    "steps_offset": 1,
}
ANIMATEDIFF_NOISE = {"beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012}


class LoadingMixin(Parts):
    """diffusers' ways to load and save, which here know the motion adapter as a folder and `generation.json`."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Self:
        """Loads a saved VideoMaker folder, or an SD 1.5 base when `motion_adapter` (a folder or a module) is given.

        A base gets AnimateDiff's DDIM schedule unless `scheduler` is given. Other arguments are those of diffusers'
        `DiffusionPipeline.from_pretrained`.

        Raises:
            InputError: a part of the folder is absent, was not fetched, lacks tensors, holds many that its
                configuration has no place for, or numbers that are not finite or above a million.
        """
        folder, dtype = Path(pretrained_model_name_or_path), _take_dtype(kwargs)
        if (folder / "model_index.json").is_file():
            check_model_files(folder, given=kwargs.keys())
        elif os.path.exists(folder):  # or it is a name of the hub's
            raise InputError(f"{folder} has no model_index.json: give a model's folder, or a file to from_single_file")
        if "text_encoder" not in kwargs and (folder / "text_encoder").is_dir():
            kwargs["text_encoder"] = load_text_encoder(
                folder / "text_encoder", dtype=_text_dtype(dtype), variant=kwargs.get("variant")
            )
            told = "Loaded text_encoder as %s from `text_encoder` subfolder of %s."  # as diffusers tells of the others
            _DIFFUSERS_LOG.info(told, type(kwargs["text_encoder"]).__name__, folder)
        _load_adapter(kwargs, dtype)
        pipe = super().from_pretrained(pretrained_model_name_or_path, **dtype_option(dtype), **kwargs)
        for part in ("unet", "vae"):
            if part not in kwargs and getattr(pipe, part) is not None and (folder / part).is_dir():
                check_all_loaded(getattr(pipe, part), folder / part)
        _warn_of_other_tokenizer(pipe)
        _set_schedule(pipe, kwargs)
        pipe.generation_defaults = read_generation_defaults(folder)
        return pipe

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Self:
        """As in diffusers: a pipeline of another one's parts, which it shares, in their dtype unless one is given.

        With `motion_adapter` (a folder or a module) the base gets AnimateDiff's schedule, as in `from_pretrained`;
        a scheduler with the noise that AnimateDiff was trained on is one that somebody chose for it, and stays.
        """
        asked = bool({"torch_dtype", "dtype"} & kwargs.keys())
        dtype = _take_dtype(kwargs) if asked else pipeline.dtype
        _load_adapter(kwargs, dtype)
        pipe = super().from_pipe(pipeline, **dtype_option(dtype), **kwargs)
        noise = {name: pipe.scheduler.config.get(name) for name in ANIMATEDIFF_NOISE} if pipe.scheduler else {}
        if noise != ANIMATEDIFF_NOISE:
            _set_schedule(pipe, kwargs)
        pipe.generation_defaults = getattr(pipeline, "generation_defaults", pipe.generation_defaults)
        return pipe

    @classmethod
    def from_single_file(cls, pretrained_model_link_or_path: str | os.PathLike, **kwargs: Any) -> Self:
        """As in diffusers, with AnimateDiff's schedule, as in `from_pretrained`; `motion_adapter` may be a folder."""
        dtype = _take_dtype(kwargs)
        _load_adapter(kwargs, dtype)
        pipe = super().from_single_file(pretrained_model_link_or_path, **dtype_option(dtype), **kwargs)
        _set_schedule(pipe, {"motion_adapter": True, **kwargs})
        return pipe

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """As in diffusers, with the model's `generation.json`."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if self.generation_defaults.given():
            Path(save_directory, FILE).write_text(self.generation_defaults.model_dump_json(exclude_none=True, indent=2))

    def load_videomaker_weights(self, path: str | os.PathLike) -> CoverageReport:
        """Loads a published or own checkpoint into the UNet, full or partial, `.safetensors` or `.bin`.

        Returns:
            How many of the expected tensors the checkpoint held.

        Raises:
            InputError: the checkpoint cannot be read, holds none of the trained tensors, or does not fit the UNet.
        """
        return load_into(self.unet, read_state_dict(path))


def _load_adapter(options: dict[str, Any], dtype: Any = None) -> None:
    """Loads the motion adapter of `options` in its place, if it is given as a folder."""
    if isinstance(adapter := options.get("motion_adapter"), (str, os.PathLike)):
        if not Path(adapter, "config.json").is_file():
            raise InputError(
                f"motion adapter {str(adapter)!r} is not a folder in the diffusers format (with config.json)"
            )
        options["motion_adapter"] = MotionAdapter.from_pretrained(adapter, **dtype_option(dtype))
        check_all_loaded(options["motion_adapter"], Path(adapter))


def _warn_of_other_tokenizer(pipe: AnimateDiffPipeline) -> None:
    if pipe.tokenizer is None or pipe.text_encoder is None:
        return
    tokens, rows = len(pipe.tokenizer), pipe.text_encoder.config.vocab_size
    if tokens != rows:
        _LOG.warning("a tokenizer of %d tokens with a text encoder of %d: prompts may mean other words", tokens, rows)


def _set_schedule(pipe: AnimateDiffPipeline, options: dict[str, Any]) -> None:
    """Gives a base that just got its motion adapter AnimateDiff's schedule, unless a scheduler was given."""
    if options.get("motion_adapter") is not None and "scheduler" not in options and pipe.scheduler is not None:
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, **ANIMATEDIFF_SCHEDULE)


def _take_dtype(options: dict[str, Any]) -> Any:
    """Takes `dtype`, or `torch_dtype` as older programs call it, out of the options."""
    asked = [options.pop(name, None) for name in ("dtype", "torch_dtype")]
    return next((one for one in asked if one is not None), None)


def _text_dtype(asked: Any) -> torch.dtype:
    """The dtype that diffusers would load the text encoder in; transformers would take that of the file."""
    asked = asked or torch.float32
    if isinstance(asked, dict):
        asked = asked.get("text_encoder", asked.get("default", torch.float32))
    return cast(torch.dtype, asked)
