"""From jobs to files: makes the videos and writes each with its record."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from videomaker import media
from videomaker.errors import InputError
from videomaker.files import atomic_directory, atomic_path
from videomaker.pipeline import VideoMakerPipeline

from . import record
from .draws import first_version_latents
from .places import check_references, is_frames_folder
from .prepare import Prepared, compile_for, warn_of_cut_prompts
from .request import Job
from .resolved import ResolvedRecipe, ResolvedSettings


def pending_jobs(prepared: Prepared, jobs: Sequence[Job], *, overwrite: bool = False) -> list[Job]:
    """The jobs whose videos are not there yet, or all of them with `overwrite`; checks what can be checked early.

    Raises:
        InputError: a reference cannot be read, or a result is there that was made from something else.
    """
    check_references(jobs)
    return [job for job in jobs if overwrite or not _is_done(job, prepared)]


def make_videos(
    prepared: Prepared,
    jobs: Sequence[Job],
    *,
    batch_size: int = 1,
    on_step: Callable[[int], None] | None = None,
    artifacts: Path | None = None,
) -> Iterator[Job]:
    """Makes videos and writes each with its record.

    Args:
        prepared: of `prepare`.
        jobs: of `pending_jobs`.
        batch_size: videos that go through the model together.
        on_step: called after every denoising step with the number of videos in it.
        artifacts: of `videomaker warmup`, where the recipe asks for compiling.

    Yields:
        Each job when its video is complete.

    Raises:
        InputError: see `render`.
        OSError: a result cannot be written; nothing half written stays.
    """
    pipe, recipe = prepared.pipe, prepared.recipe
    warn_of_cut_prompts(pipe, [job.prompt for job in jobs] + [recipe.settings.negative_prompt])
    batches = [jobs[start : start + batch_size] for start in range(0, len(jobs), batch_size)]
    compile_for(prepared, batches, artifacts)
    for batch in batches:
        videos = render(pipe, batch, recipe.settings, on_step)
        for index, (job, frames) in enumerate(zip(batch, videos, strict=True)):
            description = record.make_record(batch, index, recipe, prepared.digests)
            write_result(job.path, frames, recipe, description | {"model_fingerprint": prepared.fingerprint})
            yield job


def _is_done(job: Job, prepared: Prepared) -> bool:
    if not job.path.exists():
        return False
    path = record.record_path(job.path)
    if not path.exists():
        raise InputError(f"{job.path} exists without its record: use --overwrite or another --output")
    wanted = record.make_record([job], 0, prepared.recipe, prepared.digests)
    if what := record.difference(record.read_record(path), wanted):
        raise InputError(f"{job.path} exists and was made with {what}: use --overwrite or another --output")
    return True


class OutOfMemory(InputError):
    """Memory does not suffice for so many videos of this size at once."""


@dataclass(frozen=True)
class Sample:
    """One video of a pass: what may differ between videos that go through the model together.

    Args:
        prompt, negative_prompt: what it shows, and what it should not.
        references: pictures of the subject, in the video's shape.
        seed: of its own generator.
        guidance: guidance scale; either all videos of a pass have more than 1, or none.
    """

    prompt: str
    negative_prompt: str
    references: tuple[Image.Image, ...]
    seed: int
    guidance: float


def render(
    pipe: VideoMakerPipeline,
    batch: Sequence[Job],
    settings: ResolvedSettings,
    on_step: Callable[[int], None] | None = None,
    *,
    latents: torch.Tensor | None = None,
) -> np.ndarray:
    """Frames `[B, F, H, W, 3]` of uint8, one video a job, each from its own seed's generator.

    Jobs without references are plain AnimateDiff's; `latents` is the frames' noise where it is not to be drawn.

    Raises:
        InputError: the settings do not fit the model, memory does not suffice, or the numbers overflow.
    """
    samples = [
        Sample(
            job.prompt,
            settings.negative_prompt,
            tuple(_load(path, settings) for path in job.references),
            job.seed,
            settings.guidance,
        )
        for job in batch
    ]
    video = sample_videos(pipe, samples, settings, on_step, latents=latents)
    if not np.isfinite(video).all():
        raise InputError(overflow_message(pipe))
    return to_bytes(video)


def sample_videos(
    pipe: VideoMakerPipeline,
    samples: Sequence[Sample],
    settings: ResolvedSettings,
    on_step: Callable[[int], None] | None = None,
    *,
    latents: torch.Tensor | None = None,
) -> np.ndarray:
    """Frames `[B, F, H, W, 3]` in 0 to 1, or not finite where the numbers overflowed.

    Args:
        pipe: of `prepare`.
        samples: what differs between the videos.
        settings: what they share: frames, size and steps.
        on_step: called after every denoising step with the number of videos; what it raises ends the pass.
        latents: the frames' noise where it is not to be drawn from the seeds.

    Raises:
        OutOfMemory: memory does not suffice.
        InputError: the settings do not fit the model.
    """

    def step_done(pipe, step, timestep, tensors):
        if on_step is not None:
            on_step(len(samples))
        return tensors

    try:
        return pipe(
            [sample.prompt for sample in samples],
            **_subjects(pipe, samples, settings),
            num_frames=settings.frames,
            height=settings.height,
            width=settings.width,
            num_inference_steps=settings.steps,
            guidance_scale=[sample.guidance for sample in samples],
            negative_prompt=[sample.negative_prompt for sample in samples],
            generator=[torch.Generator().manual_seed(sample.seed) for sample in samples],
            latents=latents,
            output_type="np",
            callback_on_step_end=step_done,
            return_dict=False,
        )[0]
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise OutOfMemory(_memory_advice(len(samples), settings)) from error
        raise


def to_bytes(video: np.ndarray) -> np.ndarray:
    """Pixels from 0 to 1 as uint8."""
    return (video * 255).round().astype(np.uint8)


def _subjects(pipe: VideoMakerPipeline, samples: Sequence[Sample], settings: ResolvedSettings) -> dict[str, Any]:
    """The pictures of a batch, as the pipeline takes them; a batch without any is plain AnimateDiff's."""
    if any(sample.references for sample in samples):
        return {"reference_image": [list(sample.references) for sample in samples]}
    size = (settings.height // pipe.vae_scale_factor, settings.width // pipe.vae_scale_factor)
    return {"reference_image_embeds": torch.zeros(1, pipe.unet.config.in_channels, 0, *size)}


def overflow_message(pipe: VideoMakerPipeline) -> str:
    """What to tell when a video has pixels that are no numbers."""
    return f"the model's numbers overflow in {pipe.unet.dtype}: try --dtype bfloat16 or float32"


def _load(path: Path, settings: ResolvedSettings) -> Image.Image:
    return media.fit_reference(media.load_reference(path), settings.width, settings.height, settings.fit)


def _memory_advice(batch_size: int, settings: ResolvedSettings) -> str:
    return (
        f"memory does not suffice for {batch_size} x {settings.frames} frames of {settings.width}x{settings.height}: "
        "lower --batch-size, --frames or the size, or add --offload"
    )


def write_result(path: Path, frames: np.ndarray, recipe: ResolvedRecipe, description: dict[str, Any]) -> None:
    """Writes a video and its record; each appears complete, the record first.

    Args:
        path: the file, or the folder for frames.
        frames: `[F, H, W, 3]` of uint8.
        recipe: its format and upscale are used.
        description: of `record.make_record`; the video's SHA-256 is added.
    """
    output = recipe.output
    frames_folder = output.format == "frames"
    with atomic_directory(path, ours=is_frames_folder) if frames_folder else atomic_path(path) as temporary:
        media.write(temporary, media.enlarge(frames, output.upscale), output.format, fps=recipe.settings.fps)
        description = {**description, "video_sha256": record.file_digest(temporary)}
        with atomic_path(record.record_path(path)) as temporary_record:
            record.write_record(temporary_record, description)


def replay(
    prepared: Prepared,
    old: dict[str, Any],
    path: Path,
    *,
    references: Sequence[Path] = (),
    on_step: Callable[[int], None] | None = None,
) -> bool:
    """Makes the video of a record again.

    Args:
        prepared: of `prepare(record.recorded_recipe(old))`, perhaps with the model elsewhere.
        old: of `record.read_record`.
        path: the video to write.
        references: pictures that have moved.
        on_step: as in `make_videos`.

    Returns:
        Whether the bytes are those of the first time, which they are on the same machine with the same versions.

    Raises:
        InputError: the model or a reference is not what it was.
    """
    jobs, index = record.recorded_batch(old, path, references)
    record.check_digests(old, prepared.digests)
    torch.set_num_threads(old["machine"]["threads"])  # sums are split among the threads
    compile_for(prepared, [jobs])
    settings = prepared.recipe.settings
    latents = first_version_latents(prepared.pipe, jobs, settings) if old["record_version"] == 1 else None
    frames = render(prepared.pipe, jobs, settings, on_step, latents=latents)[index]
    new = record.make_record(jobs, index, prepared.recipe, prepared.digests) | {"record_version": old["record_version"]}
    write_result(path, frames, prepared.recipe, new)
    return record.read_record(record.record_path(path))["video_sha256"] == old["video_sha256"]


def write_contact_sheet(path: Path, jobs: Sequence[Job]) -> None:
    """Writes one picture with a row for each finished video: its references, then its frames."""
    rows = []
    for job in jobs:
        made = record.read_record(record.record_path(job.path))
        factor = made["output"]["upscale"]
        frames = media.read_frames(job.path, fps=made["settings"]["fps"])
        frames = frames[:, factor // 2 :: factor, factor // 2 :: factor]
        references = [media.load_reference(reference) for reference in job.references]
        rows.append(media.sheet_row(references, frames, f"{job.prompt}  (seed {job.seed})"))
    with atomic_path(path) as temporary:
        media.contact_sheet(rows).save(temporary)
