"""A renderer without a model, for load tests and for work on the page: frames of colours that tell the seed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from videomaker import media

from .config import ServeConfig, Shape
from .renderer import Failed, Made, OutOfMemory, RenderJob


class FakeRenderer:
    """Takes `fake_seconds` a step. A prompt with `FAIL`, `OOM` or `HANG` in it fails, runs out of memory, or hangs."""

    def __init__(self, config: ServeConfig, device: str):
        self.device, self._seconds = f"fake ({device})", config.fake_seconds

    def warm_up(self, shapes: Sequence[Shape]) -> None:
        """Nothing to do."""

    def render(self, jobs: Sequence[RenderJob], size: int, on_step: Callable[[], None]) -> list[Made | Failed]:
        """As in `Renderer`."""
        prompts = [job.request["prompt"] for job in jobs]
        if any("OOM" in prompt for prompt in prompts):
            raise OutOfMemory(f"no room for {size} videos")
        if any("HANG" in prompt for prompt in prompts):
            time.sleep(1e6)
        for _ in range(jobs[0].request["num_inference_steps"]):
            time.sleep(self._seconds)
            on_step()
        return [
            Failed("render_failed", "the prompt asks for a failure") if "FAIL" in job.request["prompt"] else _made(job)
            for job in jobs
        ]


def _made(job: RenderJob) -> Made:
    request = job.request
    shape = (request["num_frames"], request["height"], request["width"], 3)
    generator = np.random.default_rng(request["seed"])
    first, last = generator.integers(0, 256, (2, 3))
    colours = np.linspace(first, last, shape[0])
    frames = np.broadcast_to(colours.astype(np.uint8)[:, None, None], shape).copy()
    picture = np.asarray(job.references[0].resize((request["width"] // 2, request["height"] // 2)))
    frames[:, : picture.shape[0], : picture.shape[1]] = picture
    record: dict[str, Any] = {"renderer": "fake", "prompt": request["prompt"], "seed": request["seed"]}
    record.update(model=request["model"], lora=request.get("lora"))
    return Made(frames, media.default_upscale(*shape[1:3]), record)
