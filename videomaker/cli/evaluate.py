"""`videomaker evaluate`: how good a model is, by the paper's measures or in the sprite world."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from videomaker.errors import InputError

from . import options
from .app import app
from .terminal import console, prepare_model, print_table, quiet_libraries

MEASURES = "Measures"
evaluate_app = typer.Typer(help="Measure how good videos are: subject, text, motion.", no_args_is_help=True)
app.add_typer(evaluate_app, name="evaluate")

SuiteFolder = Annotated[Path, typer.Argument(help="A folder with suite.yaml: subjects, prompts, seeds.")]
Models = Annotated[
    Path | None,
    typer.Option(
        "--models",
        help="Folder of the networks that measure: clip/ dino/ face/ raft/ (and grounding-dino/ sam/ to highlight). "
        "What is missing is left out, with a line that says what to put where.",
        rich_help_panel=MEASURES,
    ),
]
Out = Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")]
ProtocolName = Annotated[
    Literal["paper", "authors"],
    typer.Option("--protocol", help="Where the paper and its authors' code differ.", rich_help_panel=MEASURES),
]
Flow = Annotated[
    Literal["raft", "dis"], typer.Option("--flow", help="dis: OpenCV's, without weights.", rich_help_panel=MEASURES)
]
FaceName = Annotated[
    Literal["insightface", "dlib"],
    typer.Option("--face", help="dlib brings its weights; never beside ArcFace's numbers.", rich_help_panel=MEASURES),
]
OpenS2V = Annotated[
    bool,
    typer.Option(
        "--opens2v/--no-opens2v",
        help="Also OpenS2V-Eval's measures that need no closed model: aesthetic/ gme/ in --models, and OpenCV.",
        rich_help_panel=MEASURES,
    ),
]
ShardText = Annotated[str, typer.Option("--shard", help="i/n: the i-th of n equal parts, to be run side by side.")]
Paper = Annotated[
    str | None,
    typer.Option("--paper", help="Quote a table of the paper beside: people, people-unseen or objects."),
]


@evaluate_app.command("run", no_args_is_help=True)
def run(
    suite: SuiteFolder,
    out: Out = Path("outputs/evaluation"),
    models: Models = None,
    protocol: ProtocolName = "paper",
    flow: Flow = "raft",
    face: FaceName = "insightface",
    opens2v: OpenS2V = False,
    shard: ShardText = "1/1",
    paper: Paper = None,
    plain: Annotated[
        bool, typer.Option(help="Also plain AnimateDiff from the same noise, a video for each prompt and seed.")
    ] = True,
    highlight: options.HighlightWord = "",
    mask: options.SuiteMask = None,
    box: options.Box = None,
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
) -> None:
    """Generate what is missing of a suite, measure what is missing, and report.

    The same command goes on after an interruption.
    """
    quiet_libraries()
    from videomaker.evaluation.protocol import protocol_named
    from videomaker.evaluation.run import parse_shard, run_suite
    from videomaker.evaluation.suite import read_suite
    from videomaker.jobs import negatives, request

    negative = negatives.negative_prompt(negative_prompt, negative_preset)
    part, task = parse_shard(shard), read_suite(suite)
    _check_table(paper)
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
    )
    prepared = prepare_model(recipe)
    settings, where = prepared.recipe.settings, prepared.recipe.model.device
    chosen = protocol_named(protocol)
    networks = _open(models, chosen, flow, face, where, opens2v)
    task = _highlighted(task, out, (settings.height, settings.width), highlight, mask, box, models, where)
    with _progress() as progress:
        run_suite(
            prepared, task, out, networks, chosen, batch_size=batch_size, plain=plain, shard=part, progress=progress
        )
    _finish(out, part.count, paper)


@evaluate_app.command("measure", no_args_is_help=True)
def measure(
    videos: Annotated[Path, typer.Argument(help="VIDEOS/SUBJECT/PROMPT-SEED.mp4, .gif or a folder of PNG frames.")],
    suite: SuiteFolder,
    out: Out = Path("outputs/evaluation"),
    models: Models = None,
    protocol: ProtocolName = "paper",
    flow: Flow = "raft",
    face: FaceName = "insightface",
    opens2v: OpenS2V = False,
    shard: ShardText = "1/1",
    paper: Paper = None,
    highlight: options.HighlightWord = "",
    mask: options.SuiteMask = None,
    box: options.Box = None,
    device: options.Device = "auto",
) -> None:
    """Measure videos that any method made for a suite, and report.

    Prompts are counted from 0 in the suite's order. The same command goes
    on after an interruption.
    """
    quiet_libraries()
    from videomaker.evaluation.protocol import protocol_named
    from videomaker.evaluation.run import first_size, measure_videos, parse_shard
    from videomaker.evaluation.suite import read_suite
    from videomaker.jobs.prepare import resolve_model
    from videomaker.jobs.request import ModelSpec

    part, task, chosen = parse_shard(shard), read_suite(suite), protocol_named(protocol)
    _check_table(paper)
    where = resolve_model(ModelSpec(device=device)).device
    networks = _open(models, chosen, flow, face, where, opens2v)
    size = first_size(videos, task) or (512, 512)
    task = _highlighted(task, out, size, highlight, mask, box, models, where)
    with _progress() as progress:
        measure_videos(videos, task, out, networks, chosen, shard=part, progress=progress)
    _finish(out, part.count, paper)


@evaluate_app.command("report", no_args_is_help=True)
def report(
    results: Annotated[Path, typer.Argument(help="A folder of `evaluate run` or `measure`.")],
    others: Annotated[list[Path] | None, typer.Argument(help="Others of the same suite, to compare with.")] = None,
    paper: Paper = None,
) -> None:
    """Write a report again, beside the paper's numbers or against other reports, video by video."""
    _check_table(paper)
    _write(results, others or [], paper)


def _check_table(paper: str | None) -> None:
    if paper is not None:
        from videomaker.evaluation import published

        published.table(paper)


def _open(models: Path | None, protocol: Any, flow: str, face: str, device: str, opens2v: bool) -> Any:
    from videomaker.evaluation.kit import ALL_GROUPS, open_networks
    from videomaker.evaluation.opens2v import TITLES as OPENS2V_TITLES
    from videomaker.evaluation.opens2v import UNAVAILABLE
    from videomaker.evaluation.protocol import TITLES

    titles = TITLES | OPENS2V_TITLES
    with console().status("Loading the networks that measure"):
        networks = open_networks(models, protocol, flow=flow, face=face, device=device, opens2v=opens2v)
    for group, reason in networks.missing.items():
        typer.echo(f"not measured: {', '.join(titles[name] for name in ALL_GROUPS[group])}: {reason}", err=True)
    for name, reason in UNAVAILABLE.items() if opens2v else ():
        typer.echo(f"not measured: {OPENS2V_TITLES[name]}: {reason}", err=True)
    if not networks.present:
        raise InputError("no measure can be taken: give --models FOLDER with clip/, dino/, face/ or raft/ in it")
    return networks


def _highlighted(
    suite: Any,
    out: Path,
    size: tuple[int, int],
    word: str,
    mask: Path | None,
    box: str | None,
    models: Path | None,
    device: str,
) -> Any:
    from videomaker.data.subject import open_finder, parse_box
    from videomaker.evaluation.run import highlight_suite

    finder = open_finder(models, device=device) if word else None
    corners = None if box is None else parse_box(box)
    height, width = size
    return highlight_suite(suite, out, height=height, width=width, word=word, masks=mask, box=corners, finder=finder)


def _finish(out: Path, shards: int, paper: str | None) -> None:
    """The report, unless other shards have still to come."""
    from videomaker.evaluation.plan import read_plan
    from videomaker.evaluation.report import collect

    plan = read_plan(out)
    there, asked = len(collect(plan, out)), len(plan.items())
    if shards > 1 and there < asked:
        typer.echo(
            f"{there} of {asked} videos are measured; when every shard is done: videomaker evaluate report {out}"
        )
        return
    _write(out, [], paper)


def _write(out: Path, others: list[Path], paper: str | None) -> None:
    from videomaker.evaluation.protocol import METRICS, TITLES
    from videomaker.evaluation.run import write_report

    paths = write_report(out, others, paper=paper)
    found = json.loads((out / "report.json").read_text(encoding="utf-8"))["metrics"]
    from rich.table import Table

    table = Table("measure", "mean", "95 %", "videos")
    for name in METRICS:
        value = found[name]
        if value["mean"] is None:
            table.add_row(TITLES[name], "—", value["reason"], "0")
        else:
            interval = f"{value['low']:.4f} to {value['high']:.4f}"
            table.add_row(TITLES[name], f"{value['mean']:.4f}", interval, str(value["count"]))
    print_table(table)
    for path in paths:
        typer.echo(path)


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each kind of work on a terminal; without one, a line at every tenth of it."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} videos"),
        TimeRemainingColumn(),
    )
    bars: dict[str, Any] = {}
    told: dict[str, int] = {}
    with Progress(*columns, console=console(), disable=not console().is_terminal) as progress:

        def advance(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what, total=total)
            progress.update(bars[what], completed=done, total=total)
            tenth = 10 * done // max(total, 1)
            if not console().is_terminal and tenth > told.get(what, -1):
                told[what] = tenth
                typer.echo(f"{what}: {done} of {total} videos", err=True)

        yield advance
