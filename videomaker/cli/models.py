"""Commands about models and this machine: warmup, convert, export, info."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from videomaker.errors import InputError

from . import options
from .app import app
from .terminal import prepare_model, quiet_libraries


@app.command(no_args_is_help=True)
def warmup(
    save: Annotated[Path, typer.Option(help="The folder to write; replaced if this command made it.")],
    frames: options.Frames = None,
    width: options.Width = None,
    height: options.Height = None,
    batch_size: Annotated[list[int], typer.Option(min=1, max=1024, help="Videos at once; repeatable.")] = [1],  # noqa: B006
    references: Annotated[int, typer.Option(min=1, max=1000, help="Pictures of each subject.")] = 1,
    model: options.Model = None,
    motion_adapter: options.MotionAdapter = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
) -> None:
    """Compile for declared shapes and save the result for generate --compile --artifacts.

    What is saved fits this device and these versions, and any weights. It
    is machine code: use only what you made.
    """
    from videomaker.files import check_writable
    from videomaker.jobs import defaults, model_check, request

    recipe = request.Recipe(
        request.ModelSpec(model or "default", motion_adapter, dtype=dtype, device=device),
        request.Settings(width=width, height=height, frames=frames),
    )
    model_check.check_model(recipe.model)
    defaults.settings_without_model(recipe.model, recipe.settings, references)
    check_writable(save.parent)
    quiet_libraries()
    from videomaker.compiled import Bucket, artifacts  # torch takes seconds

    artifacts.check_place(save)
    prepared = prepare_model(recipe)

    settings = prepared.recipe.settings
    shape = (settings.frames, settings.height, settings.width)
    guided = settings.guidance > 1
    report = prepared.pipe.compile([Bucket(*shape, size, references, guided) for size in batch_size])
    typer.echo(report, err=True)
    typer.echo(artifacts.save(save, prepared.pipe))


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A published checkpoint (.bin), or one of this project.")],
    output: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
    model: Annotated[
        Path | None,
        typer.Option(help="Folder whose UNet the checkpoint is for.", show_default="AnimateDiff on SD 1.5"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it is there.")] = False,
) -> None:
    """Turn a published checkpoint into safetensors and report what it covers."""
    if output.exists() and not overwrite:
        raise InputError(f"{output} exists: use --overwrite or another name")
    from videomaker.files import check_file_name, check_writable
    from videomaker.model_files import check_fetched

    for folder, what in ((source, "checkpoint"), (model, "model")):
        if folder is not None and not folder.exists():
            raise InputError(f"{what} {folder} does not exist")
    if source.is_file():
        check_fetched(source)
    check_file_name(output)
    check_writable(output.parent)
    quiet_libraries()
    from videomaker.weights.convert import convert_checkpoint

    typer.echo(convert_checkpoint(source, output, model=model))
    typer.echo(output)


@app.command(no_args_is_help=True)
def export(
    run: Annotated[Path, typer.Argument(help="A training run's folder.")],
    output: Annotated[Path | None, typer.Option(*options.OUT, help="File or folder; default in RUN/export.")] = None,
    dtype: Annotated[str, typer.Option(help="bf16, fp16 or fp32; default bf16, fp32 for a base.")] = "",
    ema: Annotated[bool | None, typer.Option(help="The moving average; default if the run kept one.")] = None,
    pipeline: Annotated[
        bool, typer.Option("--pipeline", help="A whole pipeline folder, not the trained part.")
    ] = False,
    merge: Annotated[bool, typer.Option("--merge", help="Of a LoRA run: the changed weights, not adapters.")] = False,
    best: Annotated[bool, typer.Option("--best", help="The weights that checkpoint.best kept.")] = False,
    push: Annotated[str, typer.Option(metavar="OWNER/NAME", help="Also upload to the hub, as a private folder.")] = "",
) -> None:
    """Turn a training run into weights that `generate` and others load, with a model card."""
    if not (run / "config.yaml").is_file():  # as `export_run` says, before the libraries load
        raise InputError(f"{run} is not a run's folder (it has no config.yaml); give the `output` of a training run")
    quiet_libraries()
    from videomaker.train.export import export_run

    if push:
        from videomaker.train.push import check_repository

        check_repository(push)
    report = partial(typer.echo, err=True)
    made = export_run(run, output, dtype=dtype, ema=ema, whole=pipeline, merge=merge, best=best, report=report)
    typer.echo(made)
    if push:
        from videomaker.train import push as hub

        typer.echo(hub.push(hub.hub_folder(run, made, run / "export" / "hub"), push))


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show versions, devices and which attention backend would run, and why."""
    from videomaker.environment import describe

    environment = describe()
    if as_json:
        import json

        typer.echo(json.dumps(environment, indent=2))
        return
    for name, version in environment["versions"].items():
        typer.echo(f"{name:14}{version or 'not installed'}")
    typer.echo(f"{'platform':14}{environment['platform']}")
    for device in environment["devices"]:
        details = ", ".join(f"{value} {key}" for key, value in device.items() if key not in ("device", "name"))
        typer.echo(f"{device['device']:14}{device['name']} ({details})")
    attention = environment["attention"]
    typer.echo(f"{'attention':14}{attention['chosen']}: {attention['reason']}")
    for name, reason in attention["unavailable"].items():
        typer.echo(f"{'  ' + name:14}{'available' if reason is None else 'not available: ' + reason}")
