"""A model checked: its folder before it is loaded, its parts afterwards."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videomaker.errors import InputError
from videomaker.files import read_json
from videomaker.model_files import PARTS, check_fetched, check_model_files
from videomaker.weights.sources import is_hub_name, is_single_file

from .defaults import model_folder
from .request import ModelSpec

if TYPE_CHECKING:
    from videomaker.pipeline import VideoMakerPipeline


# Known here, so that a slip is told before any library loads; tests hold them against the libraries' own.
DTYPES = ("auto", "float32", "float16", "bfloat16")
BACKENDS = ("auto", "naive", "sdpa", "triton")
MAX_LORA_SCALE = 100  # people use up to about 2
_DEVICE = re.compile(r"auto|cpu|mps|meta|(cpu|mps|cuda|xpu|npu|hpu|mlu|musa|privateuseone)(:\d{1,3})?")


def check_choices(spec: ModelSpec) -> None:
    """Refuses devices, dtypes and attention backends that there are nowhere.

    Raises:
        InputError: with the choices.
    """
    if not _DEVICE.fullmatch(spec.device) or spec.device == "meta":  # which holds no numbers
        raise InputError(f"device {spec.device[:40]!r} is unknown: choose auto, cpu, cuda, cuda:1, … or mps")
    if spec.dtype not in DTYPES:
        raise InputError(f"dtype {spec.dtype[:40]!r} is unknown: choose from {', '.join(DTYPES)}")
    if spec.attention_backend not in BACKENDS:
        raise InputError(
            f"unknown attention backend {spec.attention_backend[:40]!r}: choose from {', '.join(BACKENDS)}"
        )


def check_model(spec: ModelSpec) -> None:
    """Refuses what is not Stable Diffusion 1.5, AnimateDiff or VideoMaker before its weights are read.

    Raises:
        InputError: with the reason.
    """
    check_choices(spec)
    _check_places(spec)
    folder = model_folder(spec.source)
    if is_single_file(spec.source) and folder.is_file():
        if spec.motion_adapter is None:
            raise InputError(f"model {spec.source!r} makes single pictures: give --motion-adapter with AnimateDiff's")
        check_fetched(folder)
        return
    try:
        index = read_json(folder / "model_index.json")
    except InputError as error:
        raise InputError(
            f"unknown model {spec.source!r}: give 'default', a folder in the diffusers format (with model_index.json), "
            f"a single file, or a model of the hub; {error}"
        ) from error
    unet = index.get("unet")
    unet = unet[1] if isinstance(unet, list) and len(unet) == 2 else None
    if unet not in ("UNet2DConditionModel", "UNetMotionModel") or "text_encoder_2" in index:
        kind = str(index.get("_class_name"))[:60]
        raise InputError(f"model {spec.source!r} is a {kind}: give a VideoMaker or a Stable Diffusion 1.5 folder")
    if unet == "UNet2DConditionModel" and spec.motion_adapter is None:
        raise InputError(
            f"model {spec.source!r} makes single pictures: give --motion-adapter with AnimateDiff's folder"
        )
    check_model_files(folder, given=("vae",) if spec.vae else ())


def _check_places(spec: ModelSpec) -> None:
    """Refuses files that are not there; what else may be wrong with them is said when they are read."""
    if spec.weights is not None:
        if not os.path.exists(spec.weights):
            raise InputError(f"checkpoint {spec.weights[:200]} does not exist; give a .safetensors or .bin file")
        check_fetched(Path(spec.weights))
    for lora in spec.loras:
        check_fetched(split_lora(lora)[0])
    for what, other in (("VAE", spec.vae), ("motion adapter", spec.motion_adapter)):
        if other is not None and not (os.path.exists(other) or is_hub_name(other)):
            raise InputError(f"{what} {other[:200]!r} is not here: give a folder, a file or a model of the hub")


def split_lora(text: str) -> tuple[Path, float]:
    """A LoRA's file and scale from `FILE[:scale]`.

    Raises:
        InputError: the file is not there, or is neither `.safetensors` nor `.bin`.
    """
    name, colon, scale = text.rpartition(":")
    try:
        path, strength = (Path(name), float(scale)) if colon and name else (Path(text), 1.0)
    except ValueError:  # a colon in the file's name
        path, strength = Path(text), 1.0
    if not abs(strength) <= MAX_LORA_SCALE:
        raise InputError(f"LoRA {text!r} has the scale {strength}: give a number up to {MAX_LORA_SCALE}")
    if not os.path.isfile(path) or path.suffix not in (".safetensors", ".bin"):
        raise InputError(f"LoRA {text[:200]!r} is no .safetensors or .bin file; give FILE or FILE:scale")
    return path, strength


def check_parts(pipe: VideoMakerPipeline, source: str) -> None:
    """Refuses a loaded model with tensors that its files lack, only zeros, or parts that do not fit.

    Raises:
        InputError: with the reason.
    """
    from videomaker.weights.left_out import is_another_model  # loads torch

    for part in PARTS[:3]:
        parameters = dict(getattr(pipe, part).named_parameters())
        if missing := [name for name, value in parameters.items() if value.is_meta]:
            raise InputError(f"model {source!r} lacks {len(missing)} tensors of {part}, such as {missing[0]}")
        if parameters and not any(value.any() for value in parameters.values()):
            raise InputError(f"model {source!r} has only zeros in its {part}: fetch the whole folder again")
    _check_scheduler(pipe, source)
    _check_configs(pipe, source)
    unet, text = pipe.unet.config, pipe.text_encoder.config
    pairs = {
        "the UNet's input and the VAE's latents": (unet.in_channels, pipe.vae.config.latent_channels),
        "the UNet's text width and the text encoder's": (unet.cross_attention_dim, text.hidden_size),
    }
    for what, (one, other) in pairs.items():
        if one != other:
            raise InputError(f"model {source!r} has parts that do not fit: {what} are {one} and {other}")
    for part in ("unet", "vae"):
        groups = [norm.num_groups for norm in getattr(pipe, part).modules() if hasattr(norm, "num_groups")]
        if groups and min(groups) < 1:
            raise InputError(f"model {source!r} has a {part} with norm_num_groups {min(groups)}: it must be positive")
    tokens, longest = len(pipe.tokenizer), pipe.tokenizer.model_max_length
    if not 2 < tokens <= text.vocab_size or is_another_model(text.vocab_size - tokens, text.vocab_size):
        raise InputError(
            f"model {source!r} has a tokenizer of {tokens} tokens for a text encoder of {text.vocab_size}: it is "
            "another model's, fetch the whole folder again"
        )
    if not 2 < longest <= text.max_position_embeddings:
        raise InputError(
            f"model {source!r} has a tokenizer of {longest} positions for a text encoder of "
            f"{text.max_position_embeddings}: set model_max_length in tokenizer/tokenizer_config.json"
        )


def _check_configs(pipe: VideoMakerPipeline, source: str) -> None:
    side, scale, shift = (
        pipe.unet.config.sample_size, pipe.vae.config.scaling_factor, pipe.vae.config.get("shift_factor"),
    )  # fmt: skip
    if isinstance(side, bool) or not isinstance(side, int) or side < 1:
        raise InputError(f"model {source!r} has a UNet with the sample_size {str(side)[:40]!r}: it must be from 1")
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < math.inf:
        raise InputError(f"model {source!r} has a VAE with the scaling_factor {str(scale)[:40]!r}: it must be above 0")
    if shift:
        raise InputError(f"model {source!r} has a VAE with the shift_factor {shift}, of another family: give SD 1.5's")


def try_out(pipe: VideoMakerPipeline, source: str) -> None:
    """Every part once on the smallest input, so that what a damaged file breaks is told before the work.

    Raises:
        InputError: with the library's own words, or the part whose numbers overflow.
    """
    import torch
    from diffusers.models.attention_processor import AttnProcessor2_0

    processors = pipe.unet.attn_processors
    pipe.unet.set_attn_processor(AttnProcessor2_0())  # our kernels would be compiled for a size that nobody asks for
    try:
        with torch.no_grad():
            outputs = _smallest_pass(pipe)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # each part complains in its own way
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"model {source!r} cannot be used: {type(error).__name__}: {reason}") from error
    finally:
        pipe.unet.set_attn_processor(processors)
    for part, output in outputs.items():
        if not output.isfinite().all():
            raise InputError(
                f"model {source!r} cannot be used: the numbers of its {part} overflow in {output.dtype}: use a wider "
                "dtype, or fetch the whole folder again"
            )


def _smallest_pass(pipe: VideoMakerPipeline) -> dict[str, Any]:
    """What each part makes of noise, of one frame; a part sees noise rather than what the one before made."""
    import torch

    unet, vae = pipe.unet, pipe.vae
    side = 2  # of the latents: what is left is reading the weights
    levels = unet.config.block_out_channels
    if min(levels) <= (unet.config.norm_num_groups or 0):  # a norm of one channel needs more than one number
        side = 2 ** len(levels)
    pixels = side * pipe.vae_scale_factor
    draw = torch.Generator().manual_seed(0)

    def noise(like: Any, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw).to(like.device, like.dtype)

    pipe.scheduler.set_timesteps(2)
    text = pipe.encode_prompt("a", pipe.device, 1, False)[0]
    latents = noise(unet, 1, unet.config.in_channels, 1, side, side)
    predicted = unet(latents, pipe.scheduler.timesteps[0], encoder_hidden_states=text.to(unet.dtype)).sample
    posterior = vae.encode(noise(vae, 1, 3, pixels, pixels)).latent_dist
    pictures = vae.decode(noise(vae, 1, vae.config.latent_channels, side, side)).sample
    return {"text encoder": text, "UNet": predicted, "VAE": pictures, "VAE's encoder": posterior.mean + posterior.std}


def _check_scheduler(pipe: VideoMakerPipeline, source: str) -> None:
    alphas, config = getattr(pipe.scheduler, "alphas_cumprod", None), pipe.scheduler.config
    if alphas is not None and not (
        alphas.shape == (config.num_train_timesteps,) and len(alphas) and alphas.isfinite().all()
        and alphas.min() >= 0 and alphas.max() <= 1
    ):  # fmt: skip
        raise InputError(f"model {source!r} has a scheduler whose betas give no noise levels from 0 to 1")
    if config.get("prediction_type", "epsilon") not in ("epsilon", "sample", "v_prediction"):
        raise InputError(
            f"model {source!r} has the prediction_type {str(config.prediction_type)[:40]!r}: "
            "it must be epsilon, sample or v_prediction"
        )
