"""Evaluation in the sprite world, where the truth is known: unseen creatures, fixed prompts and seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from videomaker import media
from videomaker.denoising import clean_sample, predict_noise
from videomaker.errors import InputError
from videomaker.pipeline import VideoMakerPipeline
from videomaker.sprites.measure import ClipScores, score_clip
from videomaker.sprites.world import (
    CANVAS,
    ENLARGEMENT,
    Clip,
    draw_clip,
    draw_portrait,
    enlarge,
    random_background,
    random_clip,
)

GAIN_LEVELS = (300, 500, 700, 900)  # timesteps of 1000


@dataclass(frozen=True)
class SpriteSuite:
    """What is generated and measured. The same values give the same videos on the same machine."""

    clips: int = 200
    seed: int = 0
    num_inference_steps: int = 10
    guidance_scale: float = 2.0
    reference: Literal["white", "raw", "none"] = "white"  # raw: on a background that is not the prompt's
    batch_size: int = 20


@dataclass(frozen=True)
class Case:
    """One test: a clip to ask for, its reference, and the seed of both noise and distractors."""

    clip: Clip
    portrait: np.ndarray  # [32, 32, 3] uint8
    mask: np.ndarray  # [8, 16, 16] bool: where the creature is in the true clip, in canvas pixels
    reference_background: str | None
    mirrored: bool  # the reference shows the creature from the other side than it was drawn
    seed: int

    def distractor_rng(self) -> np.random.Generator:
        """What draws this case's distractors."""
        return np.random.default_rng(self.seed)


def sprite_cases(suite: SpriteSuite) -> list[Case]:
    """The suite's tests; the i-th depends only on the seed and i."""
    return [_sprite_case(suite, index) for index in range(suite.clips)]


def _sprite_case(suite: SpriteSuite, index: int) -> Case:
    rng = np.random.default_rng([suite.seed, index])
    clip = random_clip(rng, split="test")
    mirrored = bool(rng.integers(2))
    seed = int(rng.integers(2**31))
    behind = random_background(rng, but=clip.background) if suite.reference == "raw" else None
    portrait = enlarge(draw_portrait(clip.creature.view(mirrored=mirrored), behind)[0])
    return Case(clip, portrait, draw_clip(clip)[1], behind, mirrored, seed)


def evaluate_sprites(
    pipe: VideoMakerPipeline, suite: SpriteSuite, *, on_videos: Callable[[int], None] = lambda count: None
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Generates and measures the suite's clips.

    Args:
        pipe: a model of the sprite world, such as the embedded default.
        suite: what to generate.
        on_videos: hears how many videos are made so far.

    Returns:
        The mean of every measure of `videomaker.sprites.measure.ClipScores`, "identity_by_size" (a small creature has
        a quarter of the pixels to tell it by), "reference_gain" by timestep, and the suite itself; and the videos,
        `[8, 32, 32, 3]` uint8 each.

    Raises:
        InputError: the suite is empty, or the model makes other videos than those of the sprite world.
    """
    cases = sprite_cases(suite)
    scores, videos = score_cases(pipe, suite, cases, on_videos=on_videos)
    means = {
        field.name: float(np.mean([getattr(score, field.name) for score in scores])) for field in fields(ClipScores)
    }
    found: dict[str, list[bool]] = {}
    for case, score in zip(cases, scores, strict=True):
        found.setdefault(case.clip.size, []).append(score.identity)
    by_size = {size: float(np.mean(found[size])) for size in sorted(found)}
    gain = suite_gain(pipe, suite, cases)
    return {**means, "identity_by_size": by_size, "reference_gain": gain, "suite": asdict(suite)}, videos


def score_cases(
    pipe: VideoMakerPipeline,
    suite: SpriteSuite,
    cases: Sequence[Case],
    *,
    on_videos: Callable[[int], None] = lambda count: None,
) -> tuple[list[ClipScores], list[np.ndarray]]:
    """The scores of a suite's cases one by one, and their videos; see `evaluate_sprites`.

    Raises:
        InputError: the suite is empty, or the model makes other videos than those of the sprite world.
    """
    if suite.clips < 2:
        raise InputError(f"clips={suite.clips}: give at least 2, the reference gain needs another one's reference")
    _check_model(pipe)
    videos: list[np.ndarray] = []
    for batch in _batches(cases, suite.batch_size):
        videos += list(_generate(pipe, suite, batch))
        on_videos(len(videos))
    scores = [
        score_clip(
            video,
            case.clip,
            reference_background=case.reference_background,
            rng=case.distractor_rng(),
        )
        for video, case in zip(videos, cases, strict=True)
    ]
    return scores, videos


def suite_gain(pipe: VideoMakerPipeline, suite: SpriteSuite, cases: Sequence[Case]) -> dict[int, float]:
    """The reference gain of a suite's first 64 cases; none where there is no reference."""
    return {} if suite.reference == "none" else reference_gain(pipe, cases[:64])


def _check_model(pipe: VideoMakerPipeline) -> None:
    wanted = CANVAS * ENLARGEMENT
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    if side != wanted:
        raise InputError(
            f"the model makes {side}x{side} frames; the suite 'sprites' is for models of {wanted}x{wanted}"
        )


def _batches(cases: Sequence[Case], size: int) -> Iterator[Sequence[Case]]:
    return (cases[start : start + size] for start in range(0, len(cases), size))


def _generate(pipe: VideoMakerPipeline, suite: SpriteSuite, cases: Sequence[Case]) -> np.ndarray:
    """Videos `[B, 8, 32, 32, 3]` uint8 of the cases."""
    side = pipe.unet.config.sample_size
    reference: dict[str, Any] = {"reference_image": [[Image.fromarray(case.portrait)] for case in cases]}
    if suite.reference == "none":
        embeds = torch.zeros(1, pipe.unet.config.in_channels, 1, side, side, dtype=pipe.unet.dtype)
        reference = {"reference_image_embeds": embeds}
    video = pipe(
        [case.clip.caption for case in cases],
        **reference,
        num_frames=cases[0].mask.shape[0],
        num_inference_steps=suite.num_inference_steps,
        guidance_scale=suite.guidance_scale,
        generator=[torch.Generator().manual_seed(case.seed) for case in cases],
        output_type="np",
        return_dict=False,
    )[0]
    return (np.asarray(video) * 255).round().astype(np.uint8)


def contact_sheet(suite: SpriteSuite, videos: Sequence[np.ndarray], *, rows: int = 16) -> Image.Image:
    """The first videos of a suite, each in a row after its reference, with the prompt below."""
    return case_sheet(sprite_cases(suite)[:rows], videos[:rows])


def case_sheet(cases: Sequence[Case], videos: Sequence[np.ndarray]) -> Image.Image:
    """Videos, each in a row after its case's reference, with the prompt below."""
    return media.contact_sheet(
        [
            media.sheet_row([Image.fromarray(case.portrait)], video, case.clip.caption)
            for case, video in zip(cases, videos, strict=True)
        ]
    )


@torch.no_grad()
def reference_gain(pipe: VideoMakerPipeline, cases: Sequence[Case], *, seed: int = 0) -> dict[int, float]:
    """How much worse the creature is denoised with another one's reference than with its own, by timestep.

    The error is the mean squared error of the predicted clean latents, inside the creature's mask. It moves long before
    a generated video shows the reference.
    """
    clean = _encode(pipe, np.stack([enlarge(draw_clip(case.clip)[0]) for case in cases]))
    reference = _encode(pipe, np.stack([case.portrait[None] for case in cases]))
    mask = _latent_masks(np.stack([case.mask for case in cases]), clean.shape[-1]).to(clean)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed)).to(clean)
    text = pipe.encode_prompt([case.clip.caption for case in cases], pipe.device, 1, False)[0]
    gains = {}
    for timestep in GAIN_LEVELS:
        right, wrong = (
            _masked_error(pipe, clean, noise, given, timestep, text, mask)
            for given in (reference, reference.roll(1, 0))
        )
        gains[timestep] = wrong - right
    return gains


def _latent_masks(masks: np.ndarray, side: int) -> torch.Tensor:
    """Which of `side`×`side` latent pixels hold any of the masked canvas pixels: `[B, F, 16, 16]` to `[B, 1, F, …]`."""
    cell = CANVAS // side
    return torch.from_numpy(masks.reshape(*masks.shape[:2], side, cell, side, cell).any(axis=(3, 5)))[:, None]


def _encode(pipe: VideoMakerPipeline, pixels: np.ndarray) -> torch.Tensor:
    """Scaled latents `[B, C, F, h, w]` of `[B, F, H, W, 3]` uint8."""
    images = torch.from_numpy(pixels).flatten(0, 1).movedim(-1, 1).to(pipe.device, pipe.vae.dtype) / 127.5 - 1
    latents = pipe.vae.encode(images).latent_dist.mode() * pipe.vae.config.scaling_factor
    return latents.unflatten(0, pixels.shape[:2]).transpose(1, 2)


def _masked_error(pipe, clean, noise, reference, timestep: int, text, mask) -> float:
    signal = pipe.scheduler.alphas_cumprod[timestep].to(clean)
    noised = signal.sqrt() * clean + (1 - signal).sqrt() * noise
    predicted, _ = predict_noise(pipe.unet, noised, reference, timestep, text)
    denoised = clean_sample(pipe.scheduler.config.prediction_type, noised, predicted, signal)
    error = (denoised - clean).square().mean(dim=1, keepdim=True)
    return float((error * mask).sum() / mask.sum())
