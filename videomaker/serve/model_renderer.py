"""The real renderer: `videomaker.jobs` on one device, with passes padded to their declared size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from videomaker import media
from videomaker.jobs import record
from videomaker.jobs import render as jobs_render
from videomaker.jobs.prepare import Prepared, prepare
from videomaker.jobs.quiet import quiet_libraries
from videomaker.jobs.request import ModelSpec, Recipe
from videomaker.jobs.resolved import ResolvedOutput, ResolvedRecipe, ResolvedSettings
from videomaker.pipeline import VideoMakerPipeline

from .adapters import Adapters
from .config import ServeConfig, Shape
from .renderer import Failed, Made, OutOfMemory, RenderJob


class ModelRenderer:
    """A model in memory.

    Args:
        config: which model, and how it runs.
        device: where.

    Raises:
        InputError: the model or the device cannot be used.
    """

    def __init__(self, config: ServeConfig, device: str):
        quiet_libraries()
        spec = ModelSpec(
            source=config.model,
            motion_adapter=config.motion_adapter,
            weights=config.weights,
            dtype=config.dtype,
            device=device,
            attention_backend=config.attention_backend,
            compile=config.compile,
        )
        self._config = config
        self._prepared = prepare(Recipe(spec))
        self._adapters = Adapters(self._prepared, config.loras)
        self.device = self._prepared.recipe.model.device

    @property
    def pipe(self) -> VideoMakerPipeline:
        """The loaded pipeline."""
        return self._prepared.pipe

    def warm_up(self, shapes: Sequence[Shape]) -> None:
        """Compiles for the declared shapes, or makes one step of each (of the model's own, if none is declared)."""
        if self._config.compile:
            from videomaker.compiled import Bucket  # late: only a compiled worker needs it

            buckets = [Bucket(s.num_frames, s.height, s.width, s.batch, s.num_references, s.guidance) for s in shapes]
            self.pipe.compile(buckets, saved=self._config.artifacts, undeclared="eager")
            return
        own = self._prepared.recipe.settings
        default = Shape(
            num_frames=own.frames,
            height=own.height,
            width=own.width,
            batch=self._config.batch,
            guidance=own.guidance > 1,
        )
        for shape in shapes or [default]:
            self._rehearse(shape)

    def _rehearse(self, shape: Shape) -> None:
        """The first pass of a shape pays for what later ones find ready."""
        own = self._prepared.recipe.settings
        settings = replace(own, steps=1, frames=shape.num_frames, height=shape.height, width=shape.width)
        blank = media.Image.new("RGB", (shape.width, shape.height), "white")
        guidance = 2.0 if shape.guidance else 1.0
        sample = jobs_render.Sample("warm-up", "", (blank,) * shape.num_references, 0, guidance)
        jobs_render.sample_videos(self.pipe, [sample] * shape.batch, settings)

    def render(self, jobs: Sequence[RenderJob], size: int, on_step: Callable[[], None]) -> list[Made | Failed]:
        """As in `Renderer`. The padding repeats the first job, whose bits do not depend on what is beside it."""
        padded = [*jobs, *([jobs[0]] * (size - len(jobs)))]
        settings = _settings(jobs[0].request)
        samples = [_sample(job) for job in padded]
        prepared = self._adapters.put_on(jobs[0].request.get("lora"))
        try:
            videos = jobs_render.sample_videos(self.pipe, samples, settings, lambda _: on_step())
        except jobs_render.OutOfMemory as error:
            self._free()
            raise OutOfMemory(str(error)) from error
        return [self._outcome(job, video, size, prepared) for job, video in zip(jobs, videos, strict=False)]

    def _outcome(self, job: RenderJob, video: np.ndarray, size: int, prepared: Prepared) -> Made | Failed:
        if not np.isfinite(video).all():
            return Failed("overflow", jobs_render.overflow_message(self.pipe))
        upscale = media.default_upscale(*video.shape[1:3])
        return Made(jobs_render.to_bytes(video), upscale, _record(job, size, upscale, prepared))

    def _free(self) -> None:
        import torch  # late only because nothing else here names it

        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _record(job: RenderJob, size: int, upscale: int, prepared: Prepared) -> dict[str, Any]:
    """The record that `generate --from-json` takes; the batch, in it, is of this video alone: nobody's prompts."""
    request = job.request
    references = [
        {"path": f"input_reference_{index}", "sha256": reference["sha256"]}
        for index, reference in enumerate(request["references"])
    ]
    video = {"prompt": request["prompt"], "seed": request["seed"], "references": references}
    output = ResolvedOutput(format="mp4", upscale=upscale)
    recipe = ResolvedRecipe(model=prepared.recipe.model, settings=_settings(request), output=output)
    return record.describe_video(f"{job.id}.mp4", [video] * size, 0, recipe, prepared.digests)


def _settings(request: dict[str, Any]) -> ResolvedSettings:
    return ResolvedSettings(
        steps=request["num_inference_steps"],
        guidance=request["guidance_scale"],
        negative_prompt=request["negative_prompt"],
        width=request["width"],
        height=request["height"],
        frames=request["num_frames"],
        fps=request["fps"],
        fit=request["fit"],
    )


def _sample(job: RenderJob) -> jobs_render.Sample:
    request = job.request
    return jobs_render.Sample(
        request["prompt"], request["negative_prompt"], job.references, request["seed"], request["guidance_scale"]
    )
