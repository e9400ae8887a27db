"""Does a LoRA of the embedded model learn one subject from 20 clips? `python bench/lora_subject.py --output FILE`.

Twenty clips of one creature of the sprite world train adapters on the method's loss, all with the reference dropped, so
that the adapters alone can know the creature. Held out are other clips of it and clips of other creatures. Before and
after: the loss without a reference, and how often a video from its caption alone shows the creature rather than one of
15 others with its silhouette (chance is 1 in 16). Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import numpy as np
import torch
from measure import environment
from videomaker.train.config import LoraSettings, MethodConfig, ModelConfig, TrainConfig
from videomaker.train.memory import count_states
from videomaker.train.model import Denoiser, load_pipeline, prepare_denoiser
from videomaker.train.step import draw

from videomaker import VideoMakerPipeline, default_model_path
from videomaker.files import atomic_path
from videomaker.sprites import measure, world

SUBJECT_CLIPS = 20
HELD_OUT = 16
BATCH = 4
ABSENT = MethodConfig(drop_image=1.0, girl_weight=0.0)


def clips_of(creature: world.Creature | None, count: int, rng: np.random.Generator) -> list[world.Clip]:
    """Big clips of one creature, or each of another one of the test split."""
    found = []
    for _ in range(count):
        drawn = world.random_clip(rng, split="test")
        found.append(world.Clip(creature or drawn.creature, drawn.motion, drawn.background))
    return found


@torch.no_grad()
def encode(pipe: VideoMakerPipeline, clips: Sequence[world.Clip]) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents `[B, C, F, h, w]` and text embeddings `[B, L, E]`."""
    pixels = np.stack([world.enlarge(world.draw_clip(clip)[0]) for clip in clips])
    images = torch.from_numpy(pixels).flatten(0, 1).movedim(-1, 1) / 127.5 - 1
    latents = pipe.vae.encode(images).latent_dist.mode() * pipe.vae.config.scaling_factor
    text = pipe.encode_prompt([clip.caption for clip in clips], pipe.device, 1, False)[0]
    return latents.unflatten(0, pixels.shape[:2]).transpose(1, 2), text


def loss(learner: Denoiser, latents: torch.Tensor, text: torch.Tensor, keys: Sequence[tuple[int, int]]) -> torch.Tensor:
    """The method's loss of a batch without its references."""
    shape = latents.shape[1:]
    draws = draw(
        ABSENT, shape, (shape[0], 1, *shape[2:]), keys=keys, num_train_timesteps=len(learner.alphas_cumprod),
        device=latents.device,
    )  # fmt: skip
    return learner(latents, torch.zeros_like(latents[:, :, :1]), text, draws)["loss"]


@torch.no_grad()
def held_out_loss(learner: Denoiser, latents: torch.Tensor, text: torch.Tensor) -> float:
    """The mean over four noises of every clip; the same before and after."""
    losses = [loss(learner, latents, text, [(-1 - turn, i) for i in range(len(latents))]) for turn in range(4)]
    return float(torch.stack(losses).mean())


def shown_rate(pipe: VideoMakerPipeline, clips: Sequence[world.Clip], seed: int) -> dict[str, float]:
    """How often videos from the captions alone show the creature, and how far its colours are off (of 255)."""
    side, channels = pipe.unet.config.sample_size, pipe.unet.config.in_channels
    video = pipe(
        [clip.caption for clip in clips], reference_image_embeds=torch.zeros(1, channels, 1, side, side), num_frames=8,
        num_inference_steps=10, guidance_scale=2.0, output_type="np",
        generator=[torch.Generator().manual_seed(seed + i) for i in range(len(clips))],
    ).frames  # fmt: skip
    frames = (np.asarray(video) * 255).round()
    scores = [
        measure.score_clip(video, clip, reference_background=None, rng=np.random.default_rng(seed + i))
        for i, (video, clip) in enumerate(zip(frames, clips, strict=True))
    ]
    names = ("identity", "pattern", "motion", "background", "colour_distance")
    return {name: float(np.mean([getattr(score, name) for score in scores])) for name in names}


def run(options: argparse.Namespace) -> dict:
    """Trains and measures."""
    config = TrainConfig(
        precision="fp32",
        model=ModelConfig(path=str(default_model_path()), attention_backend="naive", gradient_checkpointing="none"),
        method=MethodConfig(lora=LoraSettings(rank=options.rank)),
    )
    pipe = load_pipeline(config.model, dtype=torch.float32, seed=options.seed)
    pipe.set_progress_bar_config(disable=True)
    learner = prepare_denoiser(pipe, config)
    rng = np.random.default_rng(options.seed)
    creature = world.random_creature(rng, split="test")
    taught, same = clips_of(creature, SUBJECT_CLIPS, rng), clips_of(creature, HELD_OUT, rng)
    others = clips_of(None, HELD_OUT, rng)
    sets = {"same_creature": encode(pipe, same), "other_creatures": encode(pipe, others)}

    def measures() -> dict:
        losses = {name: held_out_loss(learner, *inputs) for name, inputs in sets.items()}
        return {"loss_without_reference": losses, "videos_from_text": shown_rate(pipe, same[: options.videos], 1000)}

    before, started = measures(), time.process_time()
    latents, text = encode(pipe, taught)
    trained = [p for p in learner.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=options.learning_rate, weight_decay=0.0)
    for step in range(options.steps):
        chosen = rng.choice(SUBJECT_CLIPS, BATCH, replace=False)
        keys = [(options.seed, step * BATCH + i) for i in range(BATCH)]
        loss(learner, latents[chosen], text[chosen], keys).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    seconds = time.process_time() - started
    return {
        "environment": environment(torch.device("cpu")),
        "settings": {"clips": SUBJECT_CLIPS, "batch": BATCH, **vars(options), "output": None},
        "trained_parameters": count_states(config).trained_parameters,
        "training_cpu_seconds": seconds,
        "before": before,
        "after": measures(),
    }


def main() -> int:
    """Prints the JSON and writes it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, metavar="FILE")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--videos", type=int, default=HELD_OUT)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    document = json.dumps(run(options), indent=1)
    if options.output:
        with atomic_path(options.output) as temporary:
            temporary.write_text(document + "\n", encoding="utf-8")
    print(document)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
