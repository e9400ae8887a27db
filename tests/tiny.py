"""A tiny, randomly initialised model in the real diffusers format, for tests of the whole path."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, DDIMScheduler, MotionAdapter, UNet2DConditionModel, UNetMotionModel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from videomaker.pipeline import ANIMATEDIFF_SCHEDULE, VideoMakerPipeline

CHANNELS = (16, 32)
TEXT_WIDTH = 16


def tiny_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-level tokenizer without merges: one token a character."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer({token: i for i, token in enumerate(tokens)}, [], model_max_length=77)


def tiny_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    )


def tiny_text_encoder() -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=514,
            hidden_size=TEXT_WIDTH,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            bos_token_id=512,
            eos_token_id=513,
            pad_token_id=513,
        )
    )


def tiny_unet(**overrides) -> UNetMotionModel:
    """Two levels, 8 heads of dims 2 and 4; motion modules with up to 32 positions."""
    config = {
        "sample_size": 16,
        "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
        "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
        "block_out_channels": CHANNELS,
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "cross_attention_dim": TEXT_WIDTH,
        "num_attention_heads": 2,
        "motion_num_attention_heads": 2,
        "motion_max_seq_length": 32,
    }
    return _shake(UNetMotionModel(**{**config, **overrides}))


def tiny_unet2d() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=CHANNELS,
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=2,
    )


def tiny_motion_adapter() -> MotionAdapter:
    return _shake(
        MotionAdapter(
            block_out_channels=CHANNELS,
            motion_layers_per_block=1,
            motion_mid_block_layers_per_block=1,
            motion_num_attention_heads=2,
            motion_norm_num_groups=8,
        )
    )


def tiny_scheduler() -> DDIMScheduler:
    return DDIMScheduler(beta_start=0.00085, beta_end=0.012, **ANIMATEDIFF_SCHEDULE)


def tiny_pipeline(*, seed: int = 0, **unet_overrides) -> VideoMakerPipeline:
    """A pipeline of 32×32 pictures with 16×16 latents, the same for the same seed."""
    torch.manual_seed(seed)
    pipe = VideoMakerPipeline(
        vae=tiny_vae(),
        text_encoder=tiny_text_encoder(),
        tokenizer=tiny_tokenizer(),
        unet=tiny_unet(**unet_overrides),
        motion_adapter=None,
        scheduler=tiny_scheduler(),
    )
    for module in (pipe.vae, pipe.text_encoder, pipe.unet):
        module.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_lora(pipe: VideoMakerPipeline) -> dict[str, torch.Tensor]:
    """A random LoRA of a pipeline, as PEFT names its tensors."""
    state = {}
    for prefix, model, ends in (("unet", pipe.unet, "attn1.to_q"), ("text_encoder", pipe.text_encoder, "v_proj")):
        for name, module in model.named_modules():
            if name.endswith(ends):
                state[f"{prefix}.{name}.lora_A.weight"] = torch.randn(2, module.in_features)
                state[f"{prefix}.{name}.lora_B.weight"] = torch.randn(module.out_features, 2)
    return state


def _shake(model: torch.nn.Module) -> torch.nn.Module:
    """Gives the layers that start at zero (a motion module's last) values, so that tests see what they do."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.05)
    return model
