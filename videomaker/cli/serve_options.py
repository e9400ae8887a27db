"""Options of `serve`, `worker`, `keys` and `submit`: settings of a server, and what is asked of one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from . import options

Config = Annotated[
    Path | None,
    typer.Option("--config", envvar="VIDEOMAKER_CONFIG", help="A TOML file of settings; see docs/serving.md."),
]
Data = Annotated[
    Path | None,
    typer.Option("--data", help="Folder of the database and the files.", show_default="your data folder"),
]
Database = Annotated[str | None, typer.Option(help="An SQLAlchemy URL.", show_default="SQLite in DATA")]
Files = Annotated[str | None, typer.Option(help="A folder, or s3://…", show_default="DATA/files")]
Dtype = Annotated[
    options.DtypeName | None,
    typer.Option(help="float16 on CUDA, else float32.", show_default="auto", rich_help_panel=options.MODEL),
]
Devices = Annotated[
    str | None,
    typer.Option(
        help="A worker each, such as cuda:0,cuda:1.",
        show_default="every CUDA device, or the CPU",
        rich_help_panel=options.MODEL,
    ),
]
Compile = Annotated[
    bool | None,
    typer.Option("--compile", help="Compile for the declared shapes first.", rich_help_panel=options.MODEL),
]
Batch = Annotated[
    int | None, typer.Option(min=1, max=options.MOST, help="Videos of one shape that share a pass.", show_default="1")
]
Renderer = Annotated[
    Literal["model", "fake"] | None,
    typer.Option(help="fake: coloured frames, for load tests.", show_default="model"),
]
LogFormat = Annotated[Literal["auto", "console", "json"] | None, typer.Option(help="Of the log on stderr.")]
ShowConfig = Annotated[bool, typer.Option("--show-config", help="Print what is resolved, and end.")]

ServedModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="A model of the server, by its name there.",
        show_default="its first",
        rich_help_panel=options.MODEL,
    ),
]
HighlightWord = Annotated[
    str,
    typer.Option(
        "--highlight",
        help="Find the subject by this word, such as head or dog, and put it on white, as in training, where the "
        "server has highlight_models.",
        metavar="WORD",
        show_default=False,
        callback=options.not_empty,
    ),
]
Server = Annotated[str, typer.Option(envvar="VIDEOMAKER_SERVER", help="Address of the server.")]
Key = Annotated[str | None, typer.Option(envvar="VIDEOMAKER_KEY", help="Of videomaker keys create.", show_envvar=True)]
Output = Annotated[Path, typer.Option(*options.OUT, help="A folder, or a .mp4 file for one video.")]
JobsFile = Annotated[
    Path | None,
    typer.Option(
        "--jobs",
        help="Thousands of videos: a JSON object a line, these options its names. Goes on where it was stopped.",
    ),
]
AtOnce = Annotated[int, typer.Option(min=1, max=1000, help="With --jobs: videos that are sent and not yet fetched.")]
Consent = Annotated[
    Literal["self", "permission", "synthetic", "not_a_person"] | None,
    typer.Option(help="Why the subject may be shown.", rich_help_panel=options.VIDEO),
]
