"""A pipeline from what people have: folders, also with half-precision files alone, single files, other VAEs, LoRAs."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, MotionAdapter

from videomaker.environment import dtype_option
from videomaker.errors import InputError
from videomaker.files import read_json
from videomaker.model_files import check_sizes
from videomaker.pipeline import ANIMATEDIFF_SCHEDULE, VideoMakerPipeline
from videomaker.weights import load_text_encoder, read_state_dict
from videomaker.weights.left_out import check_all_loaded
from videomaker.weights.numbers import is_usable
from videomaker.weights.single_file import load_base, load_motion_adapter
from videomaker.weights.single_file import load_vae as load_vae_file
from videomaker.weights.sources import is_single_file, local_path, variant_of

from .model_check import split_lora
from .request import ModelSpec


def build_pipeline(spec: ModelSpec, source: Path, dtype: torch.dtype) -> VideoMakerPipeline:
    """Puts a pipeline together on the CPU, without the method's weights and LoRAs.

    Args:
        spec: what is asked for.
        source: its folder or single file.
        dtype: of every part.

    Raises:
        InputError: a part is missing or does not fit; diffusers' and transformers' own errors also come through.
    """
    options: dict[str, Any] = {"attention_backend": spec.attention_backend}
    if spec.vae is not None:
        options["vae"] = load_vae(spec.vae, dtype)
    if spec.motion_adapter is not None:
        options["motion_adapter"] = load_adapter(spec.motion_adapter, dtype)
    if not source.is_file():
        options |= {name: part for name, part in _variants(source, dtype).items() if name not in options}
        return VideoMakerPipeline.from_pretrained(source, dtype=dtype, **options)
    parts = {**load_base(source, dtype), **options}
    parts["scheduler"] = DDIMScheduler.from_config(parts["scheduler"].config, **ANIMATEDIFF_SCHEDULE)
    return VideoMakerPipeline(**parts)


def load_vae(source: str, dtype: torch.dtype) -> AutoencoderKL:
    """A VAE from a folder (its own, or a pipeline's with `vae/`), a single file, or the hub.

    Raises:
        InputError: there is none.
    """
    path = local_path(source)
    if is_single_file(source) and path.is_file():
        return load_vae_file(path, dtype)
    folder = path / "vae" if (path / "vae" / "config.json").is_file() else path
    if not (folder / "config.json").is_file():
        raise InputError(f"vae {source!r} is no folder with config.json and no single file")
    return _whole(AutoencoderKL, folder, dtype)


def load_adapter(source: str, dtype: torch.dtype) -> MotionAdapter:
    """A motion adapter from a folder, a single file, or the hub.

    Raises:
        InputError: there is none.
    """
    path = local_path(source)
    if is_single_file(source) and path.is_file():
        return load_motion_adapter(path, dtype)
    if not (path / "config.json").is_file():
        raise InputError(
            f"motion adapter {source!r} is not a folder in the diffusers format (with config.json), nor a single file"
        )
    return _whole(MotionAdapter, path, dtype)


def _whole(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A part of diffusers' with all that its file holds."""
    check_sizes(folder / "config.json", read_json(folder / "config.json"))
    part = kind.from_pretrained(folder, variant=variant_of(folder), **dtype_option(dtype))
    check_all_loaded(part, folder)
    return part


def _variants(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Parts of which only a variant lies there, such as fp16; diffusers would ask for the plain files."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    parts: dict[str, Any] = {}
    for name in ("unet", "vae"):
        if variant_of(folder / name):
            parts[name] = _whole(getattr(diffusers, index[name][1]), folder / name, dtype)
    if variant := variant_of(folder / "text_encoder"):
        parts["text_encoder"] = load_text_encoder(folder / "text_encoder", dtype=dtype, variant=variant)
    return parts


def fuse_loras(pipe: VideoMakerPipeline, loras: tuple[str, ...]) -> None:
    """Adds LoRAs into the weights, one after the other; what runs afterwards does not know of them.

    Raises:
        InputError: peft is not installed, or a file is no LoRA of this model.
    """
    if loras and find_spec("peft") is None:
        raise InputError("--lora needs peft: pip install peft")
    for number, text in enumerate(loras):
        path, scale = split_lora(text)
        name = f"lora_{number}"
        try:
            _check_lora(path)
            pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=name, local_files_only=True)
            loaded = {key: value for key, value in _adapted(pipe) if f".{name}." in key}
            if not loaded:
                raise ValueError("none of its tensors belongs to this model")
            if bad := [key for key, value in loaded.items() if not is_usable(value)]:
                raise ValueError(f"{len(bad)} of its tensors hold numbers that no LoRA has, such as {bad[0]}")
            pipe.fuse_lora(components=["unet", "text_encoder"], lora_scale=scale, adapter_names=[name])
            pipe.unload_lora_weights()
        except Exception as error:  # each library in between has its own words for a file that does not fit
            reason = " ".join(str(error).split())[:250] or type(error).__name__
            if isinstance(error, (IndexError, KeyError)):
                reason = f"its tensors do not belong together ({reason})"
            raise InputError(f"LoRA {path} cannot be used: {reason}") from error


def _check_lora(path: Path) -> None:
    """peft casts whatever it finds."""
    state = read_state_dict(path, strip=False)
    if bad := [f"{name} of {value.dtype}" for name, value in state.items() if not value.is_floating_point()]:
        raise ValueError(f"{len(bad)} of its tensors are no floating numbers, such as {bad[0]}")


def _adapted(pipe: VideoMakerPipeline) -> list[tuple[str, torch.nn.Parameter]]:
    return [*pipe.unet.named_parameters(), *pipe.text_encoder.named_parameters()]
