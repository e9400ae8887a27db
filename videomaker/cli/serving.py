"""The server's commands: serve, submit, keys."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from videomaker.errors import InputError

from . import options, serve_options
from .app import app

if TYPE_CHECKING:
    from videomaker.jobs.request import Combine, Job
    from videomaker.serve.keys import Keys


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen at.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="0: a free one.", show_default="8000")] = None,
    data: serve_options.Data = None,
    config: serve_options.Config = None,
    database: serve_options.Database = None,
    files: serve_options.Files = None,
    model: options.Model = None,
    motion_adapter: options.MotionAdapter = None,
    weights: options.Weights = None,
    dtype: serve_options.Dtype = None,
    devices: serve_options.Devices = None,
    compile: serve_options.Compile = None,
    artifacts: options.Artifacts = None,
    models: options.SubjectModels = None,
    batch: serve_options.Batch = None,
    renderer: serve_options.Renderer = None,
    worker: Annotated[
        bool | None,
        typer.Option("--worker/--no-worker", help="Make videos here, too.", show_default="worker"),
    ] = None,
    log_format: serve_options.LogFormat = None,
    show_config: serve_options.ShowConfig = False,
) -> None:
    """Serve videos over HTTP, with a page, on this machine.

    Every setting is also a variable (VIDEOMAKER_PORT) and a key of the
    TOML file; flags go before variables, variables before the file.
    """
    from videomaker.serve.config import load_config

    settings = {
        "host": host, "port": port, "data": data, "database": database, "files": files, "model": model,
        "motion_adapter": motion_adapter, "weights": weights, "dtype": dtype, "devices": devices, "batch": batch,
        "compile": compile, "artifacts": artifacts, "renderer": renderer, "log_format": log_format,
        "engine": None if worker is None else "local" if worker else "external",
        "highlight_models": models,
    }  # fmt: skip
    resolved = load_config(config, **settings)
    spare = None
    if not show_config:
        from videomaker.serve.supervisor import start_spare

        spare = start_spare(resolved)  # first of all: what it loads takes longest
    from videomaker.serve import server

    if show_config:
        server.show_config(resolved)
        return
    raise typer.Exit(server.serve(resolved, spare))


@app.command(no_args_is_help=True)
def submit(
    server: serve_options.Server = "http://127.0.0.1:8000",
    key: serve_options.Key = None,
    reference: options.References = None,
    prompt: options.Prompts = None,
    jobs_file: serve_options.JobsFile = None,
    at_once: serve_options.AtOnce = 32,
    output: serve_options.Output = Path("outputs"),
    highlight: serve_options.HighlightWord = "",
    mask: options.Mask = None,
    box: options.Box = None,
    combine: options.Combine = "each",
    seed: options.Seeds = "0",
    model: serve_options.ServedModel = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    negative_prompt: options.NegativePrompt = None,
    width: options.Width = None,
    height: options.Height = None,
    frames: options.Frames = None,
    fps: options.Fps = None,
    fit: options.Fit = None,
    consent: serve_options.Consent = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Have a server make videos; same options as generate.

    Each video and its record are fetched when they are ready. Results
    that are there are kept; Ctrl-C cancels what is not. With --jobs
    Ctrl-C leaves it to the server, and the same command fetches it.
    """
    from videomaker.jobs import places, request
    from videomaker.serve.bulk_lines import api_fields
    from videomaker.serve.client import Client

    from .submitting import submit_file, submit_jobs

    if output.suffix.lower() == ".gif":
        raise InputError(f"output {output}: a server makes .mp4; give that, or a folder")
    request.output_format(output, "mp4")
    settings = {
        "model": model, "steps": steps, "guidance": guidance, "negative_prompt": negative_prompt, "width": width,
        "height": height, "frames": frames, "fps": fps, "fit": fit, "consent": consent, "highlight": highlight or None,
        "box": box,
    }  # fmt: skip
    if jobs_file is None:
        jobs = _planned(reference or [], prompt or [], seed, output, combine)
        given = [*(path for job in jobs for path in job.references), *([mask] if mask else [])]
        places.check_places(jobs, "mp4", inputs=given, fetched=True)
        submit_jobs(Client(server, key), jobs, api_fields(settings), overwrite=overwrite, mask=mask)
        return
    if reference or prompt or mask or seed != "0" or output.suffix:
        raise InputError("--jobs: its lines hold reference, prompt, mask and seed, and --output is a folder")
    connect = partial(Client, server, key)
    submit_file(jobs_file, output, settings, connect, at_once=at_once, overwrite=overwrite)


def _planned(references: list[Path], prompts: list[str], seed: str, output: Path, combine: Combine) -> list[Job]:
    from videomaker.jobs import request

    return request.plan_jobs(
        request.find_references(references),
        request.read_prompts(prompts),
        request.parse_seeds(seed),
        output=output,
        combine=combine,
    )


keys_app = typer.Typer(help="API keys of a server; with the first, every request needs one.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")


def _keys(config: Path | None, data: Path | None) -> Keys:
    from videomaker.serve import migrate
    from videomaker.serve.config import load_config
    from videomaker.serve.database import Database
    from videomaker.serve.keys import Keys

    database = Database(load_config(config, data=data).database_url)
    migrate.upgrade(database)
    return Keys(database)


@keys_app.command("create")
def keys_create(
    name: Annotated[str, typer.Argument(help="Whose it is.")],
    max_active: Annotated[int | None, typer.Option(min=1, max=options.MOST, help="Unfinished videos at once.")] = None,
    max_per_hour: Annotated[int | None, typer.Option(min=1, max=options.MOST, help="Videos an hour.")] = None,
    priority: Annotated[int, typer.Option(min=-options.MOST, max=options.MOST, help="Lower goes first.")] = 0,
    adopt: Annotated[bool, typer.Option("--adopt", help="Take over the videos made before there were keys.")] = False,
    data: serve_options.Data = None,
    config: serve_options.Config = None,
) -> None:
    """Make a key and print it: this once, for only its SHA-256 is kept.

    The name of a revoked key gets a new one, and keeps its videos.
    """
    keys = _keys(config, data)
    key = keys.create(name, adopt=adopt, max_active=max_active, max_per_hour=max_per_hour, priority=priority)
    if count := keys.count_without_key():
        typer.echo(
            f"{count} videos made before there were keys are shown to nobody from now on: make a key with --adopt, "
            "which takes them over",
            err=True,
        )
    typer.echo(key)


@keys_app.command("list")
def keys_list(data: serve_options.Data = None, config: serve_options.Config = None) -> None:
    """List the keys, without what is secret in them."""
    from datetime import datetime

    for row in _keys(config, data).list():
        state = "in use" if row.revoked is None else f"revoked {datetime.fromtimestamp(row.revoked):%Y-%m-%d %H:%M}"
        limits = [f"{name}={getattr(row, name)}" for name in ("max_active", "max_per_hour") if getattr(row, name)]
        made = datetime.fromtimestamp(row.created)
        typer.echo(
            "  ".join([f"{row.name:20}", f"made {made:%Y-%m-%d %H:%M}", state, f"priority={row.priority}", *limits])
        )


@keys_app.command("revoke")
def keys_revoke(
    name: Annotated[str, typer.Argument()], data: serve_options.Data = None, config: serve_options.Config = None
) -> None:
    """Make a key useless from now on; its owner's videos stay."""
    _keys(config, data).revoke(name)
    typer.echo(f"{name} is revoked")
