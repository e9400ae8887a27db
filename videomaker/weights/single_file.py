"""Single files, as people pass them round: Stable Diffusion 1.5 checkpoints, motion modules, VAEs; no network needed.

What such a file does not hold, configurations and the tokenizer, lies in `sd15/`; widths and depths come from its
tensors. Files are read as tensors only: code in a `.ckpt` never runs.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, MotionAdapter, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from videomaker.errors import InputError, first_line

from .checkpoint import read_state_dict
from .numbers import check_usable

FOLDER = Path(__file__).parent / "sd15"
_UNET, _VAE, _TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
# What tells the files of other models, by a part of a name.
_OTHERS = {"conditioner.embedders": "Stable Diffusion XL", "cond_stage_model.model.": "Stable Diffusion 2"}

State = Mapping[str, torch.Tensor]


@cache
def _configs() -> dict[str, dict[str, Any]]:
    return json.loads((FOLDER / "configs.json").read_text(encoding="utf-8"))


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer, which Stable Diffusion 1.5 uses, from the merges that lie here."""
    with gzip.open(FOLDER / "merges.txt.gz", "rt", encoding="utf-8") as file:
        merges = [tuple(line.split()) for line in file.read().split("\n")]
    letters = list(_byte_letters())
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    vocabulary = {token: index for index, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocabulary, merges, model_max_length=77, pad_token="<|endoftext|>")


def _byte_letters() -> list[str]:
    """A letter for each byte in the order of GPT-2's vocabulary: printable ones first, as themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]


def load_base(path: Path, dtype: torch.dtype) -> dict[str, Any]:
    """The parts of a pipeline from a Stable Diffusion 1.5 checkpoint in the original layout.

    Returns:
        "unet", "vae", "text_encoder", "tokenizer", "scheduler".

    Raises:
        InputError: the file cannot be read, is another model's, or lacks tensors.
    """
    state = read_state_dict(path, strip=False)
    for part, name in _OTHERS.items():
        if any(key.startswith(part) for key in state):
            raise InputError(f"{path} is a checkpoint of {name}: give one of Stable Diffusion 1.5")
    missing = [prefix for prefix in (_UNET, _VAE, _TEXT) if not any(key.startswith(prefix) for key in state)]
    if missing:
        raise InputError(f"{path} has no tensors under {missing[0]}: give a whole Stable Diffusion 1.5 checkpoint")
    unet = _from_single_file(UNet2DConditionModel, state, _unet_config(path, state), path, dtype)
    return {
        "unet": unet,
        "vae": _from_single_file(AutoencoderKL, state, _vae_config(state, _VAE), path, dtype),
        "text_encoder": _text_encoder(state, path, dtype),
        "tokenizer": clip_tokenizer(),
        "scheduler": DDIMScheduler(**_configs()["scheduler"]),
    }


def load_vae(path: Path, dtype: torch.dtype) -> AutoencoderKL:
    """A VAE alone, in the original layout (with or without a whole checkpoint's prefix) or in diffusers'.

    Raises:
        InputError: the file cannot be read or holds no such VAE.
    """
    state = read_state_dict(path, strip=False)
    inner = {key.removeprefix(_VAE): value for key, value in state.items() if key.startswith(_VAE)} or dict(state)
    if "encoder.down_blocks.0.resnets.0.conv1.weight" in inner:
        raise InputError(f"{path} is a file of a diffusers folder: give its folder, with config.json")
    return _from_single_file(AutoencoderKL, inner, _vae_config(inner, ""), path, dtype)


def load_motion_adapter(path: Path, dtype: torch.dtype) -> MotionAdapter:
    """AnimateDiff's motion module from one file, such as `v3_sd15_mm.ckpt`.

    Raises:
        InputError: the file cannot be read or holds no motion module.
    """
    state = read_state_dict(path, strip=True)
    norms = _numbered(state, "down_blocks.{}.motion_modules.0.temporal_transformer.norm.weight")
    tables = [value for key, value in state.items() if key.endswith("pos_encoder.pe")]
    if not norms or not tables:
        raise InputError(f"{path} holds no motion module of AnimateDiff for Stable Diffusion 1.5")
    layers = _numbered(state, "down_blocks.0.motion_modules.{}.temporal_transformer.norm.weight")
    config = {
        **_configs()["motion_adapter"],
        "block_out_channels": [len(norm) for norm in norms],
        "motion_layers_per_block": len(layers),
        "motion_max_seq_length": tables[0].shape[-2],
        "use_motion_mid_block": any(key.startswith("mid_block.") for key in state),
    }
    return _from_single_file(MotionAdapter, state, config, path, dtype)


def _numbered(state: State, pattern: str) -> list[torch.Tensor]:
    """The tensors of a name with a number in it, from 0 until one is missing."""
    found: list[torch.Tensor] = []
    while (tensor := state.get(pattern.format(len(found)))) is not None:
        found.append(tensor)
    return found


def _unet_config(path: Path, state: State) -> dict[str, Any]:
    first = state[f"{_UNET}input_blocks.0.0.weight"]
    if first.shape[1] != 4:
        raise InputError(f"{path} takes {first.shape[1]} channels, as for inpainting: give a text-to-image checkpoint")
    config = dict(_configs()["unet"])
    per_level = config["layers_per_block"] + 1
    convolutions = [
        state.get(f"{_UNET}input_blocks.{level * per_level + 1}.0.out_layers.3.weight")
        for level in range(len(config["block_out_channels"]))
    ]
    context = state.get(f"{_UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight")
    if context is None or any(tensor is None for tensor in convolutions):
        raise InputError(f"{path} has another UNet than Stable Diffusion 1.5")
    config["block_out_channels"] = [tensor.shape[0] for tensor in convolutions if tensor is not None]
    config["cross_attention_dim"] = context.shape[1]
    return config


def _vae_config(state: State, prefix: str) -> dict[str, Any]:
    config = dict(_configs()["vae"])
    widths = _numbered(state, prefix + "encoder.down.{}.block.0.conv2.weight")
    if widths:
        config["block_out_channels"] = [tensor.shape[0] for tensor in widths]
    return config


def _text_encoder(state: State, path: Path, dtype: torch.dtype) -> CLIPTextModel:
    # transformers 4 names the tensors text_model.…, as the files do; transformers 5 without it.
    inner = {key.removeprefix(_TEXT): value for key, value in state.items() if key.startswith(_TEXT)}
    inner = {key.removeprefix("text_model."): value for key, value in inner.items()}
    inner = {key: value for key, value in inner.items() if not key.endswith("position_ids")}
    try:
        vocabulary, width = inner["embeddings.token_embedding.weight"].shape
        inside = inner["encoder.layers.0.mlp.fc1.weight"].shape[0]
    except KeyError as error:
        raise InputError(f"{path} has another text encoder than Stable Diffusion 1.5: {error} is missing") from error
    config = {
        **_configs()["text_encoder"],
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inside,
        "num_hidden_layers": len(_numbered(inner, "encoder.layers.{}.mlp.fc1.weight")),
        "num_attention_heads": max(1, width // 64),
        "max_position_embeddings": inner["embeddings.position_embedding.weight"].shape[0],
    }
    model = CLIPTextModel(CLIPTextConfig(**config))
    own = {name for name, _ in model.named_parameters()}
    if "text_model.embeddings.token_embedding.weight" in own:
        inner = {f"text_model.{key}": value for key, value in inner.items()}
    if missing := sorted(own - inner.keys()):
        raise InputError(f"{path} lacks {len(missing)} tensors of the text encoder, such as {missing[0]}")
    model.load_state_dict(inner, strict=False)
    check_usable(model.to(dtype), path)
    return model.eval()


def _from_single_file(kind: Any, state: State, config: dict[str, Any], path: Path, dtype: torch.dtype) -> Any:
    """diffusers' `from_single_file` with a configuration from here."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(config), encoding="utf-8")
        try:
            model = kind.from_single_file(dict(state), config=folder, local_files_only=True)
        except Exception as error:  # of files that do not fit, diffusers' conversion complains in many ways
            reason = first_line(error)
            if "meta tensor" in reason:  # what the file left empty
                reason = "it lacks tensors"
            raise InputError(f"{path} does not fit {kind.__name__} of Stable Diffusion 1.5: {reason}") from error
    check_usable(model.to(dtype), path)
    return model
