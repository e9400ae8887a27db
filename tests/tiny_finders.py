"""Grounding DINO and SAM with random weights, in folders of their real formats."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    BertTokenizerFast,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    GroundingDinoProcessor,
    SamConfig,
    SamImageProcessorPil,
    SamModel,
    SamProcessor,
    SwinConfig,
)


def write_finders(root: Path, *, detector: str = "grounding-dino", queries: int = 10, seed: int = 0) -> Path:
    """Both below `root`; with one query there is never more than one box."""
    torch.manual_seed(seed)
    _write_detector(root / detector, queries)
    _write_segmenter(root / "sam")
    return root


def _write_detector(folder: Path, queries: int) -> None:
    words = {f"[unused{i}]": i for i in range(1100)}
    # Grounding DINO finds the phrases of a prompt by these ids of BERT's vocabulary.
    special = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029, "head": 1050}
    vocabulary = {i: token for token, i in words.items()} | {i: token for token, i in special.items()}
    tokenizer = BertTokenizerFast(vocab={token: i for i, token in vocabulary.items()})
    swin = {"image_size": 64, "embed_dim": 8, "depths": [1] * 4, "num_heads": [1, 1, 2, 2], "window_size": 4}
    bert = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(**swin, out_features=["stage2", "stage3", "stage4"]),
        text_config={"model_type": "bert", "vocab_size": 1100, "max_position_embeddings": 64, **bert},
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=queries,
        max_text_len=32,
        disable_custom_kernels=True,
    )
    model = GroundingDinoForObjectDetection(config)
    for head in model.bbox_embed:
        head.layers[-1].bias.data[2:] += 2  # boxes of a good part of the picture
    model.save_pretrained(folder)
    images = GroundingDinoImageProcessorPil(size={"shortest_edge": 128, "longest_edge": 192})
    GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)


def _write_segmenter(folder: Path) -> None:
    patches = {"image_size": 64, "patch_size": 8}
    small = {"num_hidden_layers": 1, "num_attention_heads": 2, "mlp_dim": 16}
    vision = {"hidden_size": 16, "output_channels": 8, "global_attn_indexes": [0], "window_size": 0, "num_pos_feats": 4}
    config = SamConfig(
        vision_config={**patches, **small, **vision, "initializer_range": 0.02},
        prompt_encoder_config={**patches, "hidden_size": 8, "mask_input_channels": 4},
        mask_decoder_config={**small, "hidden_size": 8, "iou_head_depth": 2, "iou_head_hidden_dim": 8},
    )
    SamModel(config).save_pretrained(folder)
    sizes = {"size": {"longest_edge": 64}, "mask_size": {"longest_edge": 16}}
    pads = {"pad_size": {"height": 64, "width": 64}, "mask_pad_size": {"height": 16, "width": 16}}
    SamProcessor(SamImageProcessorPil(**sizes, **pads)).save_pretrained(folder)
