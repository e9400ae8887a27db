"""The server's commands: serve, submit, keys."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from videomaker.errors import InputError

from . import options, serve_options
from .app import app

if TYPE_CHECKING:
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
    from videomaker.serve import server
    from videomaker.serve.config import load_config

    settings = {
        "host": host, "port": port, "data": data, "database": database, "files": files, "model": model,
        "motion_adapter": motion_adapter, "weights": weights, "dtype": dtype, "devices": devices, "batch": batch,
        "compile": compile, "artifacts": artifacts, "renderer": renderer, "log_format": log_format,
        "engine": None if worker is None else "local" if worker else "external",
        "highlight_models": models,
    }  # fmt: skip
    resolved = load_config(config, **settings)
    if show_config:
        server.show_config(resolved)
        return
    raise typer.Exit(server.serve(resolved))


@app.command(no_args_is_help=True)
def submit(
    server: Annotated[
        str, typer.Option(envvar="VIDEOMAKER_SERVER", help="Address of the server.")
    ] = "http://127.0.0.1:8000",
    key: Annotated[
        str | None, typer.Option(envvar="VIDEOMAKER_KEY", help="Of videomaker keys create.", show_envvar=True)
    ] = None,
    reference: options.References = None,
    prompt: options.Prompts = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder, or a .mp4 file for one video.")] = Path(
        "outputs"
    ),
    highlight: options.HighlightWord = "",
    mask: options.Mask = None,
    box: options.Box = None,
    combine: options.Combine = "each",
    seed: options.Seeds = "0",
    model: options.Model = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    negative_prompt: options.NegativePrompt = None,
    width: options.Width = None,
    height: options.Height = None,
    frames: options.Frames = None,
    fps: options.Fps = None,
    fit: options.Fit = None,
    consent: Annotated[
        Literal["self", "permission", "synthetic", "not_a_person"] | None,
        typer.Option(help="Why the subject may be shown.", rich_help_panel=options.VIDEO),
    ] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Have a server make videos; same options as generate.

    Each video and its record are fetched when they are ready. Results
    that are there are kept; Ctrl-C cancels what is not.
    """
    from videomaker.jobs import places, request
    from videomaker.serve.client import Client

    from .submitting import submit_jobs

    if (width is None) != (height is None):
        raise InputError(f"--width {width} --height {height}: give both, or neither")
    if output.suffix.lower() == ".gif":
        raise InputError(f"output {output}: a server makes .mp4; give that, or a folder")
    jobs = request.plan_jobs(
        request.find_references(reference or []),
        request.read_prompts(prompt or []),
        request.parse_seeds(seed),
        output=output,
        combine=combine,
    )
    given = [*(path for job in jobs for path in job.references), *([mask] if mask else [])]
    places.check_places(jobs, "mp4", inputs=given, fetched=True)
    fields = {
        "model": model, "num_inference_steps": steps, "guidance_scale": guidance, "negative_prompt": negative_prompt,
        "size": width and f"{width}x{height}", "num_frames": frames, "fps": fps, "fit": fit, "consent": consent,
        "highlight": highlight or None, "box": box,
    }  # fmt: skip
    submit_jobs(Client(server, key), jobs, fields, overwrite=overwrite, mask=mask)


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
    max_active: Annotated[int | None, typer.Option(min=1, help="Unfinished videos at once.")] = None,
    max_per_hour: Annotated[int | None, typer.Option(min=1, help="Videos an hour.")] = None,
    priority: Annotated[int, typer.Option(help="Lower goes first.")] = 0,
    data: serve_options.Data = None,
    config: serve_options.Config = None,
) -> None:
    """Make a key and print it: this once, for only its SHA-256 is kept."""
    key = _keys(config, data).create(name, max_active=max_active, max_per_hour=max_per_hour, priority=priority)
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
