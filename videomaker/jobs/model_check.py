"""A model checked: its folder before it is loaded, its parts afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from videomaker.errors import InputError
from videomaker.files import read_json
from videomaker.model_files import PARTS, check_fetched, check_model_files
from videomaker.weights.sources import is_single_file

from .defaults import model_folder
from .request import ModelSpec

if TYPE_CHECKING:
    from videomaker.pipeline import VideoMakerPipeline


def check_model(spec: ModelSpec) -> None:
    """Refuses what is not Stable Diffusion 1.5, AnimateDiff or VideoMaker before its weights are read.

    Raises:
        InputError: with the reason.
    """
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
    if spec.weights is not None:
        if not Path(spec.weights).exists():
            raise InputError(f"checkpoint {spec.weights} does not exist; give a .safetensors or .bin file")
        check_fetched(Path(spec.weights))


def check_parts(pipe: VideoMakerPipeline, source: str) -> None:
    """Refuses a loaded model with tensors that its files lack or that are no numbers, or parts that do not fit.

    Raises:
        InputError: with the reason.
    """
    for part in PARTS[:3]:
        parameters = dict(getattr(pipe, part).named_parameters())
        if missing := [name for name, value in parameters.items() if value.is_meta]:
            raise InputError(f"model {source!r} lacks {len(missing)} tensors of {part}, such as {missing[0]}")
        if bad := [name for name, value in parameters.items() if not value.isfinite().all()]:
            raise InputError(f"model {source!r} has {len(bad)} tensors of {part} that are no numbers, such as {bad[0]}")
    unet, text = pipe.unet.config, pipe.text_encoder.config
    pairs = {
        "the UNet's input and the VAE's latents": (unet.in_channels, pipe.vae.config.latent_channels),
        "the UNet's text width and the text encoder's": (unet.cross_attention_dim, text.hidden_size),
    }
    for what, (one, other) in pairs.items():
        if one != other:
            raise InputError(f"model {source!r} has parts that do not fit: {what} are {one} and {other}")
    tokens, longest = len(pipe.tokenizer), pipe.tokenizer.model_max_length
    if not 2 < tokens <= text.vocab_size:
        raise InputError(f"model {source!r} has a tokenizer of {tokens} tokens for a text encoder of {text.vocab_size}")
    if not 2 < longest <= text.max_position_embeddings:
        raise InputError(
            f"model {source!r} has a tokenizer of {longest} positions for a text encoder of "
            f"{text.max_position_embeddings}: set model_max_length in tokenizer/tokenizer_config.json"
        )
