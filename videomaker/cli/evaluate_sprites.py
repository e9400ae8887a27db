"""`videomaker evaluate sprites`: a model scored in the sprite world, where the truth is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from videomaker.files import atomic_path

from .evaluate import evaluate_app
from .terminal import console, print_table, quiet_libraries


@evaluate_app.command("sprites")
def sprites(
    out: Annotated[Path, typer.Option(help="Folder for results.json and videos.png.")] = Path("outputs/evaluation"),
    model: Annotated[str, typer.Option(help="'default' (small, embedded) or a folder made like it.")] = "default",
    clips: Annotated[int, typer.Option(min=2, help="Unseen creatures, each with a prompt.")] = 200,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    reference: Annotated[
        Literal["white", "raw", "none"],
        typer.Option(help="Creatures on white, on a background that is not the prompt's, or no reference at all."),
    ] = "white",
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.", show_default="the model's")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale.", show_default="the model's")] = None,
) -> None:
    """Measure subject fidelity, motion and background where the truth is known: no pretrained network needed."""
    quiet_libraries()
    from videomaker.evaluation.sprites import SpriteSuite, contact_sheet, evaluate_sprites
    from videomaker.jobs.defaults import generation_defaults, model_folder
    from videomaker.jobs.prepare import load_pipeline, resolve_model
    from videomaker.jobs.request import ModelSpec

    settings, _ = generation_defaults(model_folder(model))
    task = SpriteSuite(
        clips, seed, steps or settings.steps or 30, guidance or settings.guidance or 8.0, reference=reference
    )
    pipe = load_pipeline(resolve_model(ModelSpec(source=model, dtype="float32")))
    with console().status("Evaluating") as status:
        results, videos = evaluate_sprites(pipe, task, on_videos=lambda n: status.update(f"{n} of {clips} videos"))
    out.mkdir(parents=True, exist_ok=True)
    with atomic_path(out / "results.json") as path:
        path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    with atomic_path(out / "videos.png") as path:
        contact_sheet(task, videos).save(path)
    _print_sprites(results)
    for name in ("results.json", "videos.png"):
        typer.echo(out / name)


def _print_sprites(results: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table("measure", "value")
    for name, value in results.items():
        if isinstance(value, dict):
            if name != "suite":
                for part, number in value.items():
                    table.add_row(f"{name.replace('_', ' ')}: {part}", f"{number:.3f}")
        else:
            table.add_row(name.replace("_", " "), f"{value:.3f}")
    print_table(table)
