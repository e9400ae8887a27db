"""What a run is judged by while it runs: losses on held-out clips per noise level, and videos of fixed prompts.

All ranks take part in lockstep, each with its share, because ZeRO-3 gathers parameters from all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AnimateDiffPipeline
from PIL import Image
from torch import distributed as dist
from torch import nn

from videomaker import media
from videomaker.data.loader import ClipLoader
from videomaker.errors import InputError
from videomaker.files import atomic_path
from videomaker.pipeline import VideoMakerPipeline

from .config import TrainConfig
from .inputs import Inputs
from .step import Draws

_MAX_SAMPLES = 4  # when no prompts are given
_KEY = -1  # in place of the seed: no training clip shares these draws


class Validation:
    """Held-out losses and sample videos of one run.

    Args:
        config: of the run.
        pipeline: that samples; None for the task `autoencoder`.
        inputs: the learner's arguments from a batch.
        build_loader: the loader of this rank over some data.
        rank, world_size: of this process, and how many there are.
    """

    def __init__(
        self,
        config: TrainConfig,
        pipeline: VideoMakerPipeline | None,
        inputs: Inputs,
        build_loader: Callable[..., ClipLoader],
        *,
        rank: int,
        world_size: int,
    ):
        self.config, self.pipeline, self.inputs = config, pipeline, inputs
        self.build_loader, self.rank, self.world_size = build_loader, rank, world_size
        settings, task = config.validation, config.task
        wanted = settings.every or (self.config.sampling.every and task != "autoencoder")
        self.batches = self._held_out_batches() if wanted and settings.clips else []
        self.samples = self._prompts_and_references() if self.config.sampling.every and task != "autoencoder" else []

    def _held_out_batches(self) -> list[dict[str, Any]]:
        settings = self.config.validation
        data = replace(self.config.data, split=settings.split, num_workers=0, buckets=())  # one size is one measure
        try:
            loader = self.build_loader(data, seed=0, batch_size=settings.batch_size)
        except InputError as error:
            raise InputError(
                f"no clips for validation: {error}; name another validation.split, or train without by "
                "validation.every=0 sampling.every=0"
            ) from error
        return list(islice(loader, ceil(settings.clips / (settings.batch_size * self.world_size))))

    @torch.no_grad()
    @torch.compiler.set_stance("force_eager")  # compiling for its few passes would take longer than they do
    def losses(self, learner: nn.Module) -> dict[str, float]:
        """Means of `learner` over the held-out clips: per noise level, or the VAE's own.

        "reference_gain" is how much the video loss grows when every clip gets another's reference: what the model
        takes from the reference. It needs `validation.batch_size` ≥ 2.
        """
        sums: dict[str, torch.Tensor] = {}
        for number, batch in enumerate(self.batches):
            for name, value in self._losses_of(learner, number, batch).items():
                sums[name] = sums.get(name, 0) + value.float() / (len(self.batches) * self.world_size)
        values = torch.stack(list(sums.values()))
        if self.world_size > 1:
            dist.all_reduce(values)
        return dict(zip(sums, values.tolist(), strict=True))

    def _losses_of(self, learner: nn.Module, number: int, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        size = self.config.validation.batch_size
        first = (number * self.world_size + self.rank) * size
        keys = [(_KEY, first + i) for i in range(size)]
        inputs = self.inputs(batch, keys)
        if self.config.task == "autoencoder":
            return learner(*inputs)
        latents, reference, text, draws = inputs
        found: dict[str, torch.Tensor] = {}
        for level in self.config.validation.levels:
            fixed = _at_level(draws, level)
            values = learner(latents, reference, text, fixed)
            found |= {f"{name}_{level}": value for name, value in values.items() if name != "loss"}
            if reference is not None and size > 1:
                other = learner(latents, reference.roll(1, dims=0), text, fixed)
                found[f"reference_gain_{level}"] = other["video"] - values["video"]
        return found

    def _prompts_and_references(self) -> list[tuple[str, Image.Image | None]]:
        """The configured prompts and references; without any, those of the first held-out clips."""
        settings = self.config.sampling
        if settings.prompts:
            images: list[Image.Image | None] = [media.load_reference(Path(path)) for path in settings.references]
            images = images or [None]
            return [(prompt, images[i % len(images)]) for i, prompt in enumerate(settings.prompts)]
        return list(islice(self._held_out_samples(), _MAX_SAMPLES))

    def _held_out_samples(self) -> Iterator[tuple[str, Image.Image | None]]:
        for batch in self._on_all_ranks(self.batches):
            for caption, reference in zip(batch["caption"], batch["reference"], strict=True):
                yield caption, _to_image(reference[:, 0])

    def _on_all_ranks(self, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Every rank's batches in one list, the same on all, so that a video's number means the same everywhere."""
        parts: list[Any] = [None] * self.world_size
        own = [{name: batch[name] for name in ("caption", "reference")} for batch in batches]
        dist.all_gather_object(parts, own)
        return [batch for part in parts for batch in part]

    @torch.no_grad()
    @torch.compiler.set_stance("force_eager")
    def write_samples(self, folder: Path, *, weights: str) -> np.ndarray | None:
        """Writes a video for every prompt and a contact sheet into `folder`, shared among the ranks; rank 0 gets it."""
        rank, world_size = self.rank, self.world_size
        rows: dict[int, np.ndarray] = {}
        for turn in range(ceil(len(self.samples) / world_size)):
            number = turn * world_size + rank
            prompt, reference = self.samples[number % len(self.samples)]
            frames = self._generate(prompt, reference, seed=number)
            if number < len(self.samples):
                rows[number] = frames
        parts: list[Any] = [None] * world_size
        dist.all_gather_object(parts, rows)
        if rank > 0:
            return None
        return self._write(folder, {number: frames for part in parts for number, frames in part.items()}, weights)

    def _generate(self, prompt: str, reference: Image.Image | None, *, seed: int) -> np.ndarray:
        """Frames `[F, H, W, 3]`, uint8."""
        data, settings, pipeline = self.config.data, self.config.sampling, self.pipeline
        assert pipeline is not None, self.config.task  # the autoencoder's task has no samples
        arguments: dict[str, Any] = {
            "num_frames": data.num_frames,
            "height": data.height,
            "width": data.width,
            "num_inference_steps": settings.num_inference_steps,
            "guidance_scale": settings.guidance_scale,
            "generator": torch.Generator().manual_seed(seed),
            "output_type": "np",
        }
        sampler: Any = pipeline
        if self.config.task == "text":
            sampler = AnimateDiffPipeline(**pipeline.components)
        else:
            arguments["reference_image"] = reference
        sampler.set_progress_bar_config(disable=True)
        video = sampler(prompt, **arguments).frames[0]
        return (np.asarray(video) * 255).round().astype(np.uint8)

    def _write(self, folder: Path, videos: dict[int, np.ndarray], weights: str) -> np.ndarray:
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        for number, frames in sorted(videos.items()):
            prompt, reference = self.samples[number]
            with atomic_path(folder / f"{number:02d}.mp4") as temporary:
                media.write_mp4(temporary, frames, fps=self.config.sampling.fps)
            rows.append(media.sheet_row([reference] if reference else [], frames, f"{prompt} ({weights})"))
        sheet = media.contact_sheet(rows)
        with atomic_path(folder / "sheet.png") as temporary:
            sheet.save(temporary)
        return np.asarray(sheet)


def _at_level(draws: Draws, level: int) -> Draws:
    """The same noise at one timestep, with nothing dropped."""
    kept = torch.zeros_like(draws.drop_text)
    return replace(draws, timestep=torch.full_like(draws.timestep, level), drop_text=kept, drop_image=kept)


def _to_image(pixels: torch.Tensor) -> Image.Image:
    """A picture from `[3, H, W]` in [-1, 1]."""
    array = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(array.permute(1, 2, 0).cpu().numpy())
