"""`videomaker evaluate`: how good a model is, by the paper's measures or in the sprite world."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from videomaker.errors import InputError

from . import options
from .app import app
from .groups import Model, Sampling, with_groups
from .spreading import Spread, over_ray
from .terminal import console, prepare_model, print_table, quiet_libraries

if TYPE_CHECKING:
    from videomaker.evaluation.kit import Networks
    from videomaker.evaluation.protocol import Protocol
    from videomaker.evaluation.suite import Suite
    from videomaker.jobs.prepare import Prepared

MEASURES = "Measures"
evaluate_app = typer.Typer(help="Measure how good videos are: subject, text, motion.", no_args_is_help=True)
app.add_typer(evaluate_app, name="evaluate")

SuiteFolder = Annotated[Path, typer.Argument(help="A folder with suite.yaml: subjects, prompts, seeds.")]
Out = Annotated[Path, typer.Option(*options.OUT, help="Folder for the results.")]
Paper = Annotated[
    str | None,
    typer.Option("--paper", help="Quote a table of the paper beside: people, people-unseen or objects."),
]
Models = Annotated[
    Path | None,
    typer.Option(
        "--models",
        help="Folder of the networks that measure: clip/ dino/ face/ raft/ (and grounding-dino/ sam/ to highlight). "
        "What is missing is left out, with a line that says what to put where.",
        rich_help_panel=MEASURES,
    ),
]
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


@dataclass(frozen=True)
class Measures:
    """What is measured, and by which networks."""

    models: Models = None
    protocol: ProtocolName = "paper"
    flow: Flow = "raft"
    face: FaceName = "insightface"
    opens2v: OpenS2V = False


@dataclass(frozen=True)
class Highlighting:
    """How the subjects are found in their pictures."""

    highlight: options.HighlightWord = ""
    mask: options.SuiteMask = None
    box: options.Box = None

    def check(self, models: Path | None) -> None:
        """Before a model loads.

        Raises:
            InputError: as `Highlight.of`, or a word's networks are missing.
        """
        from videomaker.data.subject import Highlight, check_models

        if Highlight.of(self.highlight, self.mask, self.box).word:
            check_models(models)


@evaluate_app.command("run", no_args_is_help=True)
@over_ray
@with_groups
def run(
    suite: SuiteFolder,
    *,
    out: Out = Path("outputs/evaluation"),
    measures: Measures,
    spread: Spread,
    paper: Paper = None,
    plain: Annotated[
        bool, typer.Option(help="Also plain AnimateDiff from the same noise, a video for each prompt and seed.")
    ] = True,
    highlighting: Highlighting,
    model: Model,
    sampling: Sampling,
    batch_size: options.BatchSize = 1,
) -> None:
    """Generate what is missing of a suite, measure what is missing, and report.

    The same command goes on after an interruption.
    """
    from videomaker.evaluation.plan import check_place
    from videomaker.evaluation.suite import read_suite

    task = read_suite(suite)  # before the libraries load
    check_place(out)
    quiet_libraries()
    from videomaker.evaluation.protocol import protocol_named
    from videomaker.evaluation.run import run_suite
    from videomaker.jobs.request import Recipe

    settings, part = sampling.settings(), spread.part()
    _check_table(paper)
    highlighting.check(measures.models)
    prepared = prepare_model(Recipe(model.spec(), settings))
    size, where = _size(prepared), prepared.recipe.model.device
    protocol = protocol_named(measures.protocol)
    networks = _open(measures, protocol, where)
    task = _highlighted(task, out, size, highlighting, measures.models, where)
    with _progress() as progress:
        run_suite(
            prepared, task, out, networks, protocol, batch_size=batch_size, plain=plain, shard=part, progress=progress
        )
    _finish(out, part.count, paper, plain=plain)


@evaluate_app.command("measure", no_args_is_help=True)
@over_ray
@with_groups
def measure(
    videos: Annotated[Path, typer.Argument(help="VIDEOS/SUBJECT/PROMPT-SEED.mp4, .gif or a folder of PNG frames.")],
    suite: SuiteFolder,
    *,
    out: Out = Path("outputs/evaluation"),
    measures: Measures,
    spread: Spread,
    paper: Paper = None,
    highlighting: Highlighting,
    device: options.Device = "auto",
) -> None:
    """Measure videos that any method made for a suite, and report.

    Prompts are counted from 0 in the suite's order. The same command goes
    on after an interruption.
    """
    from videomaker.evaluation.plan import check_place
    from videomaker.evaluation.suite import read_suite

    task = read_suite(suite)  # before the libraries load
    check_place(out)
    quiet_libraries()
    from videomaker.evaluation.protocol import protocol_named
    from videomaker.evaluation.run import first_size, measure_videos
    from videomaker.jobs.prepare import resolve_model
    from videomaker.jobs.request import ModelSpec

    part, protocol = spread.part(), protocol_named(measures.protocol)
    _check_table(paper)
    highlighting.check(measures.models)
    where = resolve_model(ModelSpec(device=device)).device
    networks = _open(measures, protocol, where)
    size = first_size(videos, task) or (512, 512)
    task = _highlighted(task, out, size, highlighting, measures.models, where)
    with _progress() as progress:
        measure_videos(videos, task, out, networks, protocol, shard=part, progress=progress)
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


def _open(measures: Measures, protocol: Protocol, device: str) -> Networks:
    from videomaker.evaluation.kit import ALL_GROUPS, open_networks
    from videomaker.evaluation.opens2v import TITLES as OPENS2V_TITLES
    from videomaker.evaluation.opens2v import UNAVAILABLE
    from videomaker.evaluation.protocol import TITLES

    titles = TITLES | OPENS2V_TITLES
    with console().status("Loading the networks that measure"):
        networks = open_networks(
            measures.models,
            protocol,
            flow=measures.flow,
            face=measures.face,
            device=device,
            opens2v=measures.opens2v,
        )
    for group, reason in networks.missing.items():
        typer.echo(f"not measured: {', '.join(titles[name] for name in ALL_GROUPS[group])}: {reason}", err=True)
    for name, reason in UNAVAILABLE.items() if measures.opens2v else ():
        typer.echo(f"not measured: {OPENS2V_TITLES[name]}: {reason}", err=True)
    if not networks.present:
        raise InputError("no measure can be taken: give --models FOLDER with clip/, dino/, face/ or raft/ in it")
    return networks


def _size(prepared: Prepared) -> tuple[int, int]:
    """Height and width of the videos."""
    return prepared.recipe.settings.height, prepared.recipe.settings.width


def _highlighted(
    suite: Suite, out: Path, size: tuple[int, int], highlighting: Highlighting, models: Path | None, device: str
) -> Suite:
    from videomaker.data.subject import open_finder, parse_box
    from videomaker.evaluation.run import highlight_suite

    word, masks = highlighting.highlight, highlighting.mask
    finder = open_finder(models, device=device) if word else None
    box = None if highlighting.box is None else parse_box(highlighting.box)
    height, width = size
    return highlight_suite(suite, out, height=height, width=width, word=word, masks=masks, box=box, finder=finder)


def _finish(out: Path, shards: int, paper: str | None, *, plain: bool = False) -> None:
    """The report, unless other shards have still to come."""
    from videomaker.evaluation.plan import read_plan
    from videomaker.evaluation.report import PLAIN, collect

    plan = read_plan(out)
    asked, there = len(plan.items()), {"videos": len(collect(plan, out))}
    if plain:
        there["of plain AnimateDiff"] = len(collect(plan, out / PLAIN))
    if shards > 1 and min(there.values()) < asked:
        counts = ", ".join(f"{count} of {asked} {what}" for what, count in there.items())
        typer.echo(f"{counts} are measured; when every shard is done, the same command without --shard reports")
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
