"""The small model before any training: configurations, tokenizer and noise schedule of the embedded default."""

from __future__ import annotations

import itertools
import json

from diffusers import AutoencoderKL, UNetMotionModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .world import BACKGROUNDS, CANVAS, CELL, ENLARGEMENT, MOTIONS, NUM_FRAMES, SIZES, caption

LATENT_CHANNELS = 3 * CELL**2  # the canvas pixels under a latent pixel
TEXT_LENGTH = 16  # tokens; the longest caption of the world has 13
START, END = "<|startoftext|>", "<|endoftext|>"
VOCABULARY = 2000  # at most; the captions' words end it long before


def make_unet() -> UNetMotionModel:
    """Two levels on 8×8 latents: the upper one copies, the lower one plans."""
    return UNetMotionModel(
        sample_size=CANVAS // CELL,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlockMotion", "CrossAttnDownBlockMotion"),
        up_block_types=("CrossAttnUpBlockMotion", "CrossAttnUpBlockMotion"),
        block_out_channels=(64, 96),
        layers_per_block=1,
        norm_num_groups=16,
        cross_attention_dim=64,
        num_attention_heads=2,
        motion_num_attention_heads=2,
        motion_max_seq_length=2 * NUM_FRAMES,
        use_motion_mid_block=True,
    )


def make_vae() -> AutoencoderKL:
    """One latent pixel for 4×4 video pixels, with as many channels as the canvas has values there."""
    return AutoencoderKL(
        sample_size=CANVAS * ENLARGEMENT,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 48, 64),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=LATENT_CHANNELS,
        mid_block_add_attention=False,
        force_upcast=False,
    )


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two layers, 64 wide, with words far apart.

    CLIP draws token embeddings so small that layers of random weights drown them: a tenth of the output's energy tells
    one caption from another, and a UNet learns to read it very slowly. With unit variance it is more than a third.
    """
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TEXT_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        projection_dim=64,
    )
    encoder = CLIPTextModel(config)
    nn.init.normal_(encoder.get_input_embeddings().weight)
    return encoder


def make_tokenizer() -> CLIPTokenizer:
    """Byte pairs learnt from all captions of the world, so that each of their words is one token."""
    texts = [caption(*words) for words in itertools.product(SIZES, MOTIONS, BACKGROUNDS)]
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1) if not chr(code).isupper()]
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    # What is named here gets its number first; left to the learner, numbers and ties differ from one call to the next.
    named = [START, END, *(f"{letter}</w>" for letter in letters)]
    learner.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            end_of_word_suffix="</w>",
            initial_alphabet=letters,
            special_tokens=named,
            show_progress=False,
        ),
    )
    learned = json.loads(learner.to_str())["model"]
    merges = [tuple(pair) for pair in learned["merges"]]
    return CLIPTokenizer(vocab=learned["vocab"], merges=merges, model_max_length=TEXT_LENGTH)
