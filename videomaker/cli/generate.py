"""`videomaker generate`: pictures and prompts to videos, and a video again from its record."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from videomaker.errors import InputError

from . import options
from .app import app
from .terminal import prepare_model, video_progress

if TYPE_CHECKING:
    from videomaker.jobs.prepare import Prepared
    from videomaker.jobs.request import Job, Recipe


_HELP = """Make videos of a subject from its picture and a prompt.

Beside each video lies a JSON with all it was made from. Results that
are there are kept: an interrupted batch goes on when run again.

[b]With the embedded model[/b], offline, on any machine:

    videomaker generate -r creature.png -p "a creature over a meadow"

[b]With Stable Diffusion 1.5[/b] from local folders, four videos of each prompt:

    videomaker generate -r person.jpg -p prompts.txt --seed 0-3
    --model realistic-vision --motion-adapter animatediff-v1-5-3
    --weights videomaker-human.safetensors

[b]Again[/b], bit for bit, from the record of a video:

    videomaker generate --from-json outputs/x.json -o again.mp4
"""


@app.command(no_args_is_help=True, help=_HELP)
def generate(
    context: typer.Context,
    reference: options.References = None,
    prompt: options.Prompts = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A folder, or a .mp4 or .gif file for one video.", show_default="outputs"),
    ] = None,
    highlight: options.HighlightWord = "",
    mask: options.Mask = None,
    box: options.Box = None,
    models: options.SubjectModels = None,
    combine: options.Combine = "each",
    seed: options.Seeds = "0",
    model: options.Model = None,
    motion_adapter: options.MotionAdapter = None,
    weights: options.Weights = None,
    vae: options.Vae = None,
    lora: options.Loras = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    attention_backend: options.AttentionBackend = "auto",
    offload: options.Offload = False,
    compile: options.Compile = False,
    artifacts: options.Artifacts = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    negative_prompt: options.NegativePrompt = None,
    negative_preset: options.NegativePreset = None,
    width: options.Width = None,
    height: options.Height = None,
    frames: options.Frames = None,
    fps: options.Fps = None,
    fit: options.Fit = None,
    batch_size: options.BatchSize = 1,
    file_format: options.FileFormat = None,
    upscale: options.Upscale = None,
    contact_sheet: options.ContactSheet = False,
    overwrite: options.Overwrite = False,
    from_json: Annotated[
        Path | None,
        typer.Option(help="Make the video of this JSON again, bit for bit.", rich_help_panel=options.RESULT),
    ] = None,
) -> None:
    """Make videos of a subject from its picture and a prompt."""
    if from_json is not None:
        _refuse_other_options(context)
        moved: dict[str, Any] = {"source": model, "motion_adapter": motion_adapter, "weights": weights, "vae": vae}
        moved |= {"loras": tuple(lora)} if lora else {}
        moved = {part: place for part, place in moved.items() if place is not None}
        return _generate_again(from_json, output, reference or [], moved, overwrite)
    from videomaker.jobs import negatives, places, request

    output = output or Path("outputs")
    file_format = request.output_format(output, file_format)
    pictures = request.find_references(reference or [])
    prompts, seeds = request.read_prompts(prompt or []), request.parse_seeds(seed)
    jobs = request.plan_jobs(pictures, prompts, seeds, output=output, file_format=file_format, combine=combine)
    negative = negatives.negative_prompt(negative_prompt, negative_preset)
    recipe = request.Recipe(
        request.ModelSpec(
            model or "default",
            motion_adapter,
            weights,
            dtype,
            device,
            attention_backend,
            offload,
            compile,
            vae,
            tuple(lora or ()),
        ),
        request.Settings(steps, guidance, negative, width, height, frames, fps, fit),
        request.Output(file_format, upscale),
    )
    if artifacts is not None and not compile:
        raise InputError(f"--artifacts {artifacts} goes with --compile: add it")
    if models is not None and not highlight:
        raise InputError(f"--models {models} goes with --highlight WORD: add it")
    sheet = places.sheet_path(output) if contact_sheet else None
    inputs = [*pictures, *map(Path, prompt or [])]
    _check(jobs, recipe, sheet, inputs)
    jobs = _generate_jobs(jobs, recipe, batch_size, overwrite, artifacts, (highlight, mask, box, models))
    if sheet is not None:
        typer.echo(_write_contact_sheet(sheet, jobs))


# What may be given with --from-json: where things lie now.
_WITH_FROM_JSON = {
    "from_json", "reference", "output", "model", "motion_adapter", "weights", "vae", "lora", "overwrite",
}  # fmt: skip


def _refuse_other_options(context: typer.Context) -> None:
    for name in context.params.keys() - _WITH_FROM_JSON:
        if context.get_parameter_source(name).name == "COMMANDLINE":
            raise InputError(f"--{name.replace('_', '-')} does not go with --from-json, which brings its own")


def _check(jobs: list[Job], recipe: Recipe, sheet: Path | None, inputs: list[Path]) -> None:
    """Everything that can be known before the libraries load."""
    from videomaker.jobs import defaults, model_check, places
    from videomaker.jobs.request import check_prompt

    if recipe.settings.negative_prompt:
        check_prompt(recipe.settings.negative_prompt)
    places.check_references(jobs)
    places.check_places(jobs, recipe.output.format, sheet=sheet, inputs=inputs)
    model_check.check_model(recipe.model)
    settings = defaults.settings_without_model(recipe.model, recipe.settings, len(jobs[0].references))
    if settings is not None:
        defaults.resolve_output(recipe.output, settings)


def _generate_jobs(
    jobs: list[Job],
    recipe: Recipe,
    batch_size: int,
    overwrite: bool,
    artifacts: Path | None,
    subject: tuple[str, Path | None, str | None, Path | None],
) -> list[Job]:
    """Makes the jobs' videos; returns them with the pictures that were used."""
    from videomaker.jobs.finished import all_finished

    if not (overwrite or any(subject)) and all_finished(jobs, recipe):
        typer.echo(f"{len(jobs)} of {len(jobs)} videos are there already; --overwrite makes them again", err=True)
        for job in jobs:
            typer.echo(job.path)
        return jobs
    prepared = prepare_model(recipe)
    from videomaker.jobs.render import make_videos, pending_jobs
    from videomaker.jobs.subjects import warn_of_backgrounds

    word, mask, box, models = subject
    jobs = _highlighted(prepared, jobs, word, mask, box, models)
    pending = pending_jobs(prepared, jobs, overwrite=overwrite)
    if not (word or mask or box):
        warn_of_backgrounds(path for job in pending for path in job.references)
    finished = len(jobs) - len(pending)
    if finished:
        typer.echo(f"{finished} of {len(jobs)} videos are there already; --overwrite makes them again", err=True)
    for job in jobs:
        if job not in pending:
            typer.echo(job.path)
    try:
        with video_progress(len(pending), prepared.recipe.settings.steps) as advance:
            videos = make_videos(prepared, pending, batch_size=batch_size, on_step=advance, artifacts=artifacts)
            for job in videos:
                finished += 1
                print(job.path, flush=True)  # typer.echo would write into the progress bar
    except KeyboardInterrupt:
        typer.echo(f"interrupted: {finished} of {len(jobs)} videos are complete; run the same again to go on", err=True)
        raise
    return jobs


def _highlighted(
    prepared: Prepared, jobs: list[Job], word: str, mask: Path | None, box: str | None, models: Path | None
) -> list[Job]:
    from videomaker.data.subject import Highlight, parse_box
    from videomaker.jobs.subjects import highlight_jobs

    highlight = Highlight(word, mask, None if box is None else parse_box(box))
    recipe = prepared.recipe
    if highlight:
        return highlight_jobs(jobs, highlight, recipe.settings, models=models, device=recipe.model.device)
    return jobs


def _generate_again(
    path: Path, output: Path | None, references: list[Path], moved: dict[str, str], overwrite: bool
) -> None:
    from videomaker.jobs import record, request

    old = record.read_record(path)
    recipe = record.recorded_recipe(old)
    output = output or path.with_name(old["video"])
    request.output_format(output, recipe.output.format)
    if output.exists() and not overwrite:
        raise InputError(f"{output} exists: use --overwrite or another --output")
    jobs, _ = record.recorded_batch(old, output, references)
    recipe = replace(recipe, model=replace(recipe.model, **moved))
    _check(jobs, recipe, None, [reference for job in jobs for reference in job.references])
    prepared = prepare_model(recipe)
    from videomaker.jobs.render import replay

    with video_progress(1, recipe.settings.steps) as advance:
        same = replay(prepared, old, output, references=references, on_step=advance)
    typer.echo("the same bytes as the first time" if same else "NOT the same bytes as the first time", err=True)
    typer.echo(output)


def _write_contact_sheet(sheet: Path, jobs: list[Job]) -> Path:
    from videomaker.jobs.render import write_contact_sheet

    write_contact_sheet(sheet, jobs)
    return sheet
