"""`videomaker worker`: workers alone, beside servers that share their database and files."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options, serve_options
from .app import app


@app.command()
def worker(
    database: serve_options.Database = None,
    files: serve_options.Files = None,
    data: serve_options.Data = None,
    config: serve_options.Config = None,
    model: options.Model = None,
    motion_adapter: options.MotionAdapter = None,
    weights: options.Weights = None,
    dtype: serve_options.Dtype = None,
    devices: serve_options.Devices = None,
    compile: serve_options.Compile = None,
    artifacts: options.Artifacts = None,
    batch: serve_options.Batch = None,
    renderer: serve_options.Renderer = None,
    only: Annotated[str | None, typer.Option(help="Of several models these, with commas.", show_default="all")] = None,
    idle_exit: Annotated[
        float | None,
        typer.Option(min=0, help="End after so many seconds without work.", show_default="never"),
    ] = None,
    log_format: serve_options.LogFormat = None,
    show_config: serve_options.ShowConfig = False,
) -> None:
    """Make the videos that servers of the same database accept.

    A Slurm job, a Kubernetes Job or Deployment: it takes work when it
    comes, and SIGTERM lets it finish what it makes.
    """
    from videomaker.serve import server, workers
    from videomaker.serve.config import load_config

    settings = {
        "database": database, "files": files, "data": data, "model": model, "motion_adapter": motion_adapter,
        "weights": weights, "dtype": dtype, "devices": devices, "compile": compile, "artifacts": artifacts,
        "batch": batch, "renderer": renderer, "idle_exit": idle_exit, "only": only, "log_format": log_format,
    }  # fmt: skip
    resolved = load_config(config, **settings)
    if show_config:
        server.show_config(resolved)
        return
    raise typer.Exit(workers.work(resolved))
