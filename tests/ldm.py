"""Tiny Stable Diffusion 1.5 parts as one file, in the original layout: diffusers' names turned back."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from diffusers import AutoencoderKL, MotionAdapter, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

WIDTHS = (32, 32, 64, 64)  # groups of 32
TEXT_WIDTH = 32


def sd_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(block_out_channels=WIDTHS, cross_attention_dim=TEXT_WIDTH, sample_size=64)


def sd_vae(**overrides) -> AutoencoderKL:
    config = {
        "block_out_channels": (32, 32, 32, 32),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "sample_size": 512,
    }
    return AutoencoderKL(**{**config, **overrides})


def sd_text_encoder() -> CLIPTextModel:
    sizes = {"hidden_size": TEXT_WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1}
    return CLIPTextModel(CLIPTextConfig(vocab_size=49408, bos_token_id=49406, eos_token_id=49407, **sizes))


def sd_motion_adapter(**overrides) -> MotionAdapter:
    return MotionAdapter(block_out_channels=WIDTHS, **overrides)


_UNET = [
    (r"^time_embedding\.linear_1", "time_embed.0"),
    (r"^time_embedding\.linear_2", "time_embed.2"),
    (r"^conv_in", "input_blocks.0.0"),
    (r"^conv_norm_out", "out.0"),
    (r"^conv_out", "out.2"),
    (r"^mid_block\.resnets\.0", "middle_block.0"),
    (r"^mid_block\.attentions\.0", "middle_block.1"),
    (r"^mid_block\.resnets\.1", "middle_block.2"),
]
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def _unet_name(name: str) -> str:
    for pattern, new in _UNET:
        name = re.sub(pattern, new, name)
    if match := re.match(r"down_blocks\.(\d)\.(resnets|attentions|downsamplers)\.(\d)\.(.*)", name):
        level, kind, number, rest = int(match[1]), match[2], int(match[3]), match[4]
        if kind == "downsamplers":
            name = f"input_blocks.{3 * level + 3}.0.op{rest.removeprefix('conv')}"
        else:
            name = f"input_blocks.{3 * level + number + 1}.{int(kind == 'attentions')}.{rest}"
    if match := re.match(r"up_blocks\.(\d)\.(resnets|attentions|upsamplers)\.(\d)\.(.*)", name):
        level, kind, number, rest = int(match[1]), match[2], int(match[3]), match[4]
        if kind == "upsamplers":
            name = f"output_blocks.{3 * level + 2}.{1 if level == 0 else 2}.{rest}"
        else:
            name = f"output_blocks.{3 * level + number}.{int(kind == 'attentions')}.{rest}"
    head, _, last = name.rpartition(".")
    block, _, layer = head.rpartition(".")
    return f"{block}.{_RESNET[layer]}.{last}" if layer in _RESNET and "transformer_blocks" not in block else name


def _vae_name(name: str) -> str:
    name = re.sub(r"(encoder|decoder)\.mid_block\.resnets\.(\d)", lambda m: f"{m[1]}.mid.block_{int(m[2]) + 1}", name)
    name = re.sub(r"(encoder|decoder)\.mid_block\.attentions\.0", r"\1.mid.attn_1", name)
    name = re.sub(r"encoder\.down_blocks\.(\d)\.resnets\.(\d)", r"encoder.down.\1.block.\2", name)
    name = re.sub(r"encoder\.down_blocks\.(\d)\.downsamplers\.0", r"encoder.down.\1.downsample", name)
    up = r"decoder\.up_blocks\.(\d)\.(resnets\.(\d)|upsamplers\.0)"
    name = re.sub(up, lambda m: f"decoder.up.{3 - int(m[1])}." + (f"block.{m[3]}" if m[3] else "upsample"), name)
    for ours, theirs in (
        ("conv_norm_out", "norm_out"), ("conv_shortcut", "nin_shortcut"), ("group_norm", "norm"),
        ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out"),
    ):  # fmt: skip
        name = name.replace(f".{ours}.", f".{theirs}.")
    return name


def _vae_tensor(name: str, tensor: torch.Tensor) -> torch.Tensor:
    linear = ".mid.attn_1." in name and name.endswith("weight") and ".norm." not in name
    return tensor[:, :, None, None] if linear else tensor


def original_vae(vae: AutoencoderKL) -> dict[str, torch.Tensor]:
    names = {_vae_name(name): tensor for name, tensor in vae.state_dict().items()}
    return {name: _vae_tensor(name, tensor).contiguous() for name, tensor in names.items()}


def original_checkpoint(unet, vae, text_encoder) -> dict[str, torch.Tensor]:
    """The three parts under the prefixes of one checkpoint."""
    text = {name.removeprefix("text_model."): tensor for name, tensor in text_encoder.state_dict().items()}
    state = {f"model.diffusion_model.{_unet_name(name)}": tensor for name, tensor in unet.state_dict().items()}
    state |= {f"first_stage_model.{name}": tensor for name, tensor in original_vae(vae).items()}
    state |= {f"cond_stage_model.transformer.text_model.{name}": tensor for name, tensor in text.items()}
    return {name: tensor.clone().contiguous() for name, tensor in state.items()}


def original_motion_module(adapter: MotionAdapter) -> dict[str, torch.Tensor]:
    """With the names of AnimateDiff's own files, wrapped as a training leaves them."""
    state = {}
    for name, tensor in adapter.state_dict().items():
        if name.endswith("pos_embed.pe"):
            name = name.replace("pos_embed.pe", "attention_blocks.0.pos_encoder.pe")
        for ours, theirs in (
            (".norm1.", ".norms.0."), (".norm2.", ".norms.1."), (".norm3.", ".ff_norm."),
            (".attn1.", ".attention_blocks.0."), (".attn2.", ".attention_blocks.1."),
        ):  # fmt: skip
            name = name.replace(ours, theirs)
        name = re.sub(r"(motion_modules\.\d)", r"\1.temporal_transformer", name)
        state[f"module.{name}"] = tensor
    return state


def write_checkpoint(path: Path, state: dict[str, torch.Tensor]) -> Path:
    """As `.safetensors`, or as a torch file with what trainers leave beside the tensors."""
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "global_step": 1}, path)
    return path
