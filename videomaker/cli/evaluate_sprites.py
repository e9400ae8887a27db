"""`videomaker evaluate sprites`: a model scored in the sprite world, where the truth is known."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from videomaker.errors import check_number

from . import options
from .evaluate import evaluate_app
from .options import MOST
from .terminal import console, print_table, quiet_libraries


@evaluate_app.command("sprites")
def sprites(
    out: Annotated[
        Path, typer.Option(*options.OUT, help="Folder for results.json, creatures.csv and videos.png.")
    ] = Path("outputs/evaluation"),
    model: Annotated[str, typer.Option(help="'default' (small, embedded) or a folder made like it.")] = "default",
    clips: Annotated[
        int, typer.Option(min=2, max=MOST, help="Unseen creatures of each seed, each with a prompt.")
    ] = 200,
    seed: Annotated[
        str, typer.Option(help="A number, or several such as 1,2,3 or 0-9: other creatures with each.")
    ] = "0",
    reference: Annotated[
        Literal["white", "raw", "none"],
        typer.Option(help="Creatures on white, on a background that is not the prompt's, or no reference at all."),
    ] = "white",
    steps: Annotated[
        int | None, typer.Option(min=1, max=MOST, help="Denoising steps.", show_default="the model's")
    ] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="Guidance scale.", show_default="the model's")] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Measure subject fidelity, motion and background where the truth is known: no pretrained network needed.

    Rates come with 95 % intervals over the creatures of all seeds, and with a
    table of which creatures fail. The same command goes on after an
    interruption, seed by seed; other settings want another --out.
    """
    quiet_libraries()
    from videomaker.evaluation.sprite_study import CREATURES, RESULTS, SHEET, check_earlier, check_place, study_sprites
    from videomaker.evaluation.sprites import SpriteSuite
    from videomaker.jobs.defaults import PAPER_SETTINGS, generation_defaults, model_folder
    from videomaker.jobs.prepare import load_pipeline, resolve_model
    from videomaker.jobs.request import ModelSpec, parse_seeds

    seeds = parse_seeds(seed)
    check_place(out)
    settings, _ = generation_defaults(model_folder(model))
    scale = next(x for x in (guidance, settings.guidance, PAPER_SETTINGS.guidance) if x is not None)
    check_number("guidance", scale)
    task = SpriteSuite(clips, seeds[0], steps or settings.steps or 30, scale, reference=reference)
    if not overwrite:
        check_earlier(out, task)
    pipe = load_pipeline(resolve_model(ModelSpec(source=model, dtype="float32")))
    with console().status("Evaluating") as status:
        tell = lambda done, of: status.update(f"{done} of {of} videos")
        results = study_sprites(pipe, task, seeds, out, overwrite=overwrite, progress=tell)
    _print_measures(results)
    _print_failures(results["failures"])
    for name in (RESULTS, CREATURES, SHEET):
        typer.echo(out / name)


def _print_measures(results: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table("measure", "value", "95 %", "creatures", *(f"seed {seed}" for seed in results["seeds"]))
    for name, value in results["intervals"].items():
        if value is not None:
            words, size = name.replace("_", " "), name.removeprefix("identity_")
            per_seed = [
                of[name] if name in of else of["identity_by_size"].get(size) for of in results["seeds"].values()
            ]
            cells = ["" if one is None else f"{one:.3f}" for one in per_seed]
            table.add_row(words, f"{value['mean']:.3f}", _interval(value), str(value["count"]), *cells)
    for name in ("colour_distance", "temporal_consistency"):
        table.add_row(name.replace("_", " "), f"{results[name]:.3f}")
    for step, gain in results["reference_gain"].items():
        table.add_row(f"reference gain: {step}", f"{gain:.3f}")
    print_table(table)


def _print_failures(failures: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Identity by trait, of the sizes that fail at all."""
    from rich.table import Table

    for size, by_trait in failures.items():
        if by_trait["all"]["all"]["identity"]["mean"] == 1:
            continue
        table = Table(f"{size} creatures by", "", "identity", "95 %", "pattern", "creatures")
        for trait, parts in by_trait.items():
            for part, rates in parts.items():
                identity, pattern = rates["identity"], rates["pattern"]
                cells = (f"{identity['mean']:.3f}", _interval(identity), f"{pattern['mean']:.3f}")
                table.add_row(trait.replace("_", " "), part, *cells, str(identity["count"]))
        print_table(table)


def _interval(value: dict[str, float]) -> str:
    return f"{value['low']:.2f}-{value['high']:.2f}"
