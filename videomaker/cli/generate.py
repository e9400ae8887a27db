"""`videomaker generate`: pictures and prompts to videos, and a video again from its record."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from videomaker.errors import InputError

from . import options
from .app import app
from .groups import Highlighting, Model, Results, Sampling, with_groups
from .terminal import prepare_model, quiet_libraries, video_progress

if TYPE_CHECKING:
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
@with_groups
def generate(
    context: typer.Context,
    *,
    reference: options.References = None,
    prompt: options.Prompts = None,
    output: Annotated[
        Path | None,
        typer.Option(*options.OUT, help="A folder, or a .mp4 or .gif file for one video.", show_default="outputs"),
    ] = None,
    highlighting: Highlighting,
    combine: options.Combine = "each",
    seed: options.Seeds = "0",
    model: Model,
    artifacts: options.Artifacts = None,
    sampling: Sampling,
    results: Results,
    from_json: Annotated[
        Path | None,
        typer.Option(help="Make the video of this JSON again, bit for bit.", rich_help_panel=options.RESULT),
    ] = None,
) -> None:
    """Make videos of a subject from its picture and a prompt."""
    if from_json is not None:
        _refuse_other_options(context)
        return _generate_again(from_json, output, reference or [], model, results.overwrite)
    from videomaker.jobs import places, request

    output = output or Path("outputs")
    file_format = request.output_format(output, results.file_format)
    pictures = request.find_references(reference or [])
    prompts, seeds = request.read_prompts(prompt or []), request.parse_seeds(seed)
    jobs = request.plan_jobs(pictures, prompts, seeds, output=output, file_format=file_format, combine=combine)
    written = request.Output(file_format, results.upscale)
    recipe = request.Recipe(model.spec(), sampling.settings(), written)
    if artifacts is not None and not model.compile:
        raise InputError(f"--artifacts {artifacts} goes with --compile: add it")
    if artifacts is not None and not artifacts.is_dir():
        raise InputError(
            f"--artifacts: there is no folder {artifacts}; make it with videomaker warmup --save {artifacts}"
        )
    if highlighting.models is not None and not highlighting.highlight:
        raise InputError(f"--models {highlighting.models} goes with --highlight WORD: add it")
    sheet = places.sheet_path(output) if results.contact_sheet else None
    _check(jobs, recipe, sheet, [*pictures, *map(Path, prompt or [])])
    jobs = _generate_jobs(jobs, recipe, highlighting, results, artifacts)
    if sheet is not None:
        typer.echo(_write_contact_sheet(sheet, jobs))


# What may be given with --from-json: where things lie now.
_WITH_FROM_JSON = {
    "from_json", "reference", "output", "model", "motion_adapter", "weights", "vae", "lora", "overwrite",
}  # fmt: skip


def _refuse_other_options(context: typer.Context) -> None:
    for name in context.params.keys() - _WITH_FROM_JSON:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise InputError(f"--{name.replace('_', '-')} does not go with --from-json, which brings its own")


def _check(jobs: list[Job], recipe: Recipe, sheet: Path | None, inputs: list[Path]) -> None:
    """Everything that can be known before the libraries load."""
    from videomaker.jobs import defaults, model_check, places
    from videomaker.jobs.request import check_text

    check_text(recipe.settings.negative_prompt or "")
    places.check_references(jobs)
    places.check_places(jobs, recipe.output.format, sheet=sheet, inputs=inputs)
    model_check.check_model(recipe.model)
    settings = defaults.settings_without_model(recipe.model, recipe.settings, len(jobs[0].references))
    if settings is not None:
        defaults.resolve_output(recipe.output, settings)


def _generate_jobs(
    jobs: list[Job], recipe: Recipe, highlighting: Highlighting, results: Results, artifacts: Path | None
) -> list[Job]:
    """Makes the jobs' videos; returns them with the pictures that were used."""
    from videomaker.jobs.finished import all_finished

    highlighted = highlighting != Highlighting()
    if not (results.overwrite or highlighted) and all_finished(jobs, recipe):
        _tell_finished(jobs, [])
        return jobs
    if highlighted:
        _check_highlighting(jobs, highlighting)
    prepared = prepare_model(recipe)
    from videomaker.jobs.render import make_videos, pending_jobs
    from videomaker.jobs.subjects import highlight_jobs, warn_of_backgrounds

    if highlight := highlighting.asked():
        settings, device = prepared.recipe.settings, prepared.recipe.model.device
        jobs = highlight_jobs(jobs, highlight, settings, models=highlighting.models, device=device)
    pending = pending_jobs(prepared, jobs, overwrite=results.overwrite)
    if not highlight:
        warn_of_backgrounds(path for job in pending for path in job.references)
    _tell_finished(jobs, pending)
    finished = len(jobs) - len(pending)
    try:
        with video_progress(len(pending), prepared.recipe.settings.steps) as advance:
            videos = make_videos(prepared, pending, batch_size=results.batch_size, on_step=advance, artifacts=artifacts)
            for job in videos:
                finished += 1
                print(job.path, flush=True)  # typer.echo would write into the progress bar
    except KeyboardInterrupt:
        typer.echo(f"interrupted: {finished} of {len(jobs)} videos are complete; run the same again to go on", err=True)
        raise
    return jobs


def _check_highlighting(jobs: list[Job], highlighting: Highlighting) -> None:
    """Before the model loads, though torch does."""
    quiet_libraries()
    from videomaker.jobs.subjects import check_highlight

    check_highlight(jobs, highlighting.asked(), highlighting.models)


def _tell_finished(jobs: list[Job], pending: list[Job]) -> None:
    """Names the videos that were there before."""
    finished = [job for job in jobs if job not in pending]
    if finished:
        there = f"{len(finished)} of {len(jobs)} videos are there already"
        typer.echo(f"{there}; --overwrite makes them again", err=True)
    for job in finished:
        typer.echo(job.path)


def _generate_again(path: Path, output: Path | None, references: list[Path], model: Model, overwrite: bool) -> None:
    from videomaker.jobs import record, request

    old = record.read_record(path)
    recipe = record.recorded_recipe(old)
    output = output or path.with_name(old["video"])
    request.output_format(output, recipe.output.format)
    if output.exists() and not overwrite:
        raise InputError(f"{output} exists: use --overwrite or another --output")
    jobs, _ = record.recorded_batch(old, output, references)
    recipe = replace(recipe, model=model.moved(recipe.model))
    _check(jobs, recipe, None, [reference for job in jobs for reference in job.references])
    prepared = prepare_model(recipe)
    from videomaker.jobs.render import replay

    with video_progress(1, prepared.recipe.settings.steps) as advance:
        same = replay(prepared, old, output, references=references, on_step=advance)
    typer.echo("the same bytes as the first time" if same else "NOT the same bytes as the first time", err=True)
    typer.echo(output)


def _write_contact_sheet(sheet: Path, jobs: list[Job]) -> Path:
    from videomaker.jobs.render import write_contact_sheet

    write_contact_sheet(sheet, jobs)
    return sheet
