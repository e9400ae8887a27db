"""The runs: presets as functions of nothing, each a whole configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from videomaker.data.dataset import DataConfig
from videomaker.data.reference import PEOPLE, Augmentation

from .config import (
    CheckpointConfig,
    LogConfig,
    MethodConfig,
    ModelConfig,
    OptimizerConfig,
    SamplingConfig,
    TrainConfig,
    ValidationConfig,
    ZeroConfig,
)


def paper_human() -> TrainConfig:
    """People, as the paper trains: CelebV-Text, four devices (arXiv 2412.19645, section 5.1)."""
    return TrainConfig(data=DataConfig(augmentation=PEOPLE))


def paper_object() -> TrainConfig:
    """Objects, as the paper trains: VideoBooth's data."""
    return TrainConfig(steps=100_000, data=DataConfig(crop_to_subject=True))


def authors_human() -> TrainConfig:
    """People, as the authors' published code behaves where it differs from the paper; but a dropped reference, to whose
    zeros it adds noise to be predicted, is the zeros that guidance shows.
    """
    return replace(
        paper_human(),
        precision="fp16",
        zero=ZeroConfig(stage=1),
        method=MethodConfig(min_snr_gamma=5.0, drop_text=0.05, drop_image=0.05, drop_both=0.05),
    )


def _ablation(**changes: Any) -> Callable[[], TrainConfig]:
    return lambda: replace(paper_human(), method=MethodConfig(**changes))


def ablation_no_highlight() -> TrainConfig:
    """Table 3: the reference is a raw frame, background included."""
    human = paper_human()
    return replace(human, data=replace(human.data, highlight=False))


def smoke() -> TrainConfig:
    """A few steps of the real recipe on a tiny clip size: does this installation train at all?"""
    return TrainConfig(
        steps=4,
        batch_size=1,
        precision="fp32",
        data=DataConfig(num_frames=4, frame_stride=1, height=64, width=64, num_workers=0),
        zero=ZeroConfig(stage=0),
        checkpoint=CheckpointConfig(every=2),
        validation=ValidationConfig(every=0),
        sampling=SamplingConfig(every=0),
        log=LogConfig(every=1),
    )


def sprites_vae() -> TrainConfig:
    """The small autoencoder of the sprite world; the first of the runs behind the embedded default model."""
    shared = _sprites()
    return replace(
        shared,
        task="autoencoder",
        steps=2500,
        data=replace(shared.data, num_frames=1),  # pictures of many creatures teach it more than many of one
        model=ModelConfig(path="runs/sprites-untrained", from_scratch=("vae",)),
        method=MethodConfig(anchor_weight=1.0),
        optimizer=OptimizerConfig(4e-3, betas=(0.9, 0.99), warmup_steps=20, schedule="cosine", ema_decay=0.99),
    )


def sprites_base() -> TrainConfig:
    """Text to video in the sprite world: every parameter, no reference."""
    return replace(
        _cached_sprites(),
        task="text",
        steps=3000,
        batch_size=16,
        model=ModelConfig(
            path="runs/sprites-untrained", vae="runs/sprites-vae/export", from_scratch=("unet",), **_SPRITE_SPEED
        ),
        method=MethodConfig(drop_text=0.1, drop_image=0.0, dropped_text="empty"),
    )


def sprites() -> TrainConfig:
    """The paper's recipe on the sprite base: PISA and GIRL, `attn1` and the motion modules."""
    return replace(
        _cached_sprites(),
        steps=19_500,
        model=ModelConfig(path="runs/sprites-base/export", **_SPRITE_SPEED),
        method=MethodConfig(drop_text=0.05, drop_image=0.05, drop_both=0.05, dropped_text="empty"),
    )


def sprites_small() -> TrainConfig:
    """Goes on from `sprites` on clips of small creatures mostly, which it copies worst."""
    run = sprites()
    return replace(
        run,
        steps=12_000,
        data=replace(run.data, manifest="data/sprites-small/manifest.jsonl", cache="data/sprites-small-cache"),
        model=replace(run.model, path="runs/sprites/pipeline"),
    )


# With 64 tokens to a frame, training on a CPU is quickest when the reference is simply repeated, and compiled.
_SPRITE_SPEED: dict[str, Any] = {"attention_backend": "naive", "compile": True, "gradient_checkpointing": False}


def _cached_sprites() -> TrainConfig:
    """With the frames' latents and the captions' embeddings from `videomaker data cache`."""
    shared = _sprites()
    return replace(shared, data=replace(shared.data, cache="data/sprites-cache"))


def _sprites() -> TrainConfig:
    """What the runs share; `videomaker data sprites --out data/sprites` draws their clips."""
    return TrainConfig(
        batch_size=8,
        micro_batch_size=8,
        precision="autocast",
        data=DataConfig(
            manifest="data/sprites/manifest.jsonl",
            num_frames=8,
            frame_stride=1,
            height=32,
            width=32,
            augmentation=Augmentation(flip_probability=0.5, rotation=0, translation=0, scale_min=1, scale_max=1),
            num_workers=0,
        ),
        optimizer=OptimizerConfig(1.5e-3, betas=(0.9, 0.99), warmup_steps=50, schedule="cosine", ema_decay=0.998),
        zero=ZeroConfig(stage=0),
        checkpoint=CheckpointConfig(every=500),
        validation=ValidationConfig(every=500, clips=32, batch_size=32, levels=(300, 500, 700, 900)),
        sampling=SamplingConfig(every=0, num_inference_steps=10, guidance_scale=2.0),
    )


PRESETS: dict[str, Callable[[], TrainConfig]] = {
    "paper-human": paper_human,
    "paper-object": paper_object,
    "authors-human": authors_human,
    "ablation-no-pisa": _ablation(pisa=False),
    "ablation-no-girl": _ablation(girl_weight=0.0),
    "ablation-no-reference-cross-attention": _ablation(reference_cross_attention=False),
    "ablation-frozen-motion": _ablation(update_motion=False),
    "ablation-no-highlight": ablation_no_highlight,
    "smoke": smoke,
    "sprites-vae": sprites_vae,
    "sprites-base": sprites_base,
    "sprites": sprites,
    "sprites-small": sprites_small,
}
