"""Generates and measures what is missing of a suite and writes the report; goes on after an interruption."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from videomaker.data.sharing import WHOLE, Shard
from videomaker.data.subject import ADVICE, Finder, Highlight, border_is_plain, write_highlighted
from videomaker.errors import InputError
from videomaker.files import atomic_path, to_json
from videomaker.jobs.prepare import Prepared, compile_for, warn_of_cut_prompts
from videomaker.jobs.record import make_record
from videomaker.jobs.render import pending_jobs, render, write_result
from videomaker.jobs.request import Job
from videomaker.media import load_reference

from . import pictures, tables
from .kit import Networks
from .measure import Measurer, ReferencePicture, measures_path
from .plan import Plan, read_plan, write_plan
from .protocol import Protocol
from .report import PLAIN, build_report, collect, compare
from .suite import Item, Suite
from .videos import find_video, read_video, strangers

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]  # what is going on, done, of how many


def highlight_suite(
    suite: Suite,
    out: Path,
    *,
    height: int,
    width: int,
    word: str = "",
    masks: Path | None = None,
    box: tuple[float, float, float, float] | None = None,
    finder: Finder | None = None,
) -> Suite:
    """The suite with the pictures that are used: highlighted ones are written to `OUT/references`.

    Args:
        suite: its subjects' own masks and boxes come first.
        out: the folder of results.
        height, width: of the videos.
        word: what to detect; "class" stands for each subject's class.
        masks: a folder of `SUBJECT.png`, or one file for one subject.
        box: for all subjects.
        finder: of `videomaker.data.subject.open_finder`, for a word.

    Raises:
        InputError: a subject cannot be highlighted so.
    """
    if masks is not None and not masks.is_dir() and len(suite.subjects) > 1:
        raise InputError(f"--mask {masks} is one file for {len(suite.subjects)} subjects: give a folder of SUBJECT.png")
    subjects = []
    for subject in suite.subjects:
        mask = subject.mask
        if masks is not None and mask is None:
            mask = masks / f"{subject.name}.png" if masks.is_dir() else masks
        highlight = Highlight(subject.kind if word == "class" else word, mask, subject.box or box)
        image = subject.image
        if highlight:
            image = write_highlighted(
                image, out / "references" / subject.name, highlight, height=height, width=width, finder=finder
            )
        elif not border_is_plain(load_reference(image)):
            logger.warning("the border of %s is not plain: %s", image, ADVICE)
        subjects.append(replace(subject, image=image))
    return replace(suite, subjects=tuple(subjects))


def run_suite(
    prepared: Prepared,
    suite: Suite,
    out: Path,
    networks: Networks,
    protocol: Protocol,
    *,
    batch_size: int = 1,
    plain: bool = True,
    shard: Shard = WHOLE,
    progress: Progress = lambda what, done, of: None,
) -> Plan:
    """Generates and measures a suite's videos, and those of plain AnimateDiff from the same noise.

    Videos are folders of PNG, so that what is measured is what was generated, also after an interruption. The batches
    are the same however often the run is interrupted and among however many shards they are shared, so the bits are.
    A shard measures the videos that it makes, whatever the others have done by then.

    Raises:
        InputError: see `videomaker.jobs.render`; or results are there that were made otherwise.
    """
    recipe = replace(prepared.recipe, output=replace(prepared.recipe.output, format="frames", upscale=1))
    prepared = replace(prepared, recipe=recipe)
    made_by = {**asdict(recipe), "components_sha256": prepared.digests}
    plan = Plan(suite, protocol.name, out / "videos", made_by)
    jobs = {_job(item, plan.videos): item for item in plan.items()}
    pending_jobs(prepared, list(jobs))  # what was made otherwise is refused while the plan still says how
    write_plan(plan, out)
    batches = shard.of(_in_batches(list(jobs), batch_size))
    warn_of_cut_prompts(prepared.pipe, [job.prompt for job in jobs] + [recipe.settings.negative_prompt])
    compile_for(prepared, batches)
    _generate(prepared, batches, "generating", progress)
    own = [jobs[job] for batch in batches for job in batch]  # videos of other shards may not be there yet
    measure_plan(plan, out, networks, protocol, items=own, progress=progress)
    if plain:
        _run_plain(prepared, plan, out, networks, protocol, batch_size, shard, progress)
    return plan


def _job(item: Item, folder: Path) -> Job:
    return Job((item.subject.image,), item.prompt.text, item.seed, folder / item.subject.name / item.name)


def _in_batches(jobs: Sequence[Job], size: int) -> list[Sequence[Job]]:
    return [jobs[start : start + size] for start in range(0, len(jobs), size)]


def _generate(prepared: Prepared, batches: Sequence[Sequence[Job]], what: str, progress: Progress) -> None:
    """Makes the batches of which any video is missing; of those only the missing ones are written."""
    total, done = sum(map(len, batches)), 0
    for batch in batches:
        progress(what, done, total)
        missing = pending_jobs(prepared, batch)
        if missing:
            videos = render(prepared.pipe, batch, prepared.recipe.settings)
            for index, (job, frames) in enumerate(zip(batch, videos, strict=True)):
                if job in missing:
                    record = make_record(batch, index, prepared.recipe, prepared.digests)
                    write_result(job.path, frames, prepared.recipe, record)
        done += len(batch)
        progress(what, done, total)


def _run_plain(
    prepared: Prepared,
    plan: Plan,
    out: Path,
    networks: Networks,
    protocol: Protocol,
    batch_size: int,
    shard: Shard,
    progress: Progress,
) -> None:
    """Plain AnimateDiff's videos, one for each prompt and seed, measured against every subject that has the prompt."""
    texts = list(dict.fromkeys(prompt.text for prompts in plan.suite.prompts.values() for prompt in prompts))
    jobs = {
        (text, seed): Job((), text, seed, out / PLAIN / "videos" / f"{number}-{seed}")
        for number, text in enumerate(texts)
        for seed in plan.suite.seeds
    }
    batches = shard.of(_in_batches(list(jobs.values()), batch_size))
    _generate(prepared, batches, "plain AnimateDiff", progress)
    own = {job for batch in batches for job in batch}
    videos = {item: job.path for item in plan.items() if (job := jobs[item.prompt.text, item.seed]) in own}
    measure_plan(plan, out / PLAIN, networks, protocol, items=list(videos), progress=progress, locate=videos.get)


def measure_plan(
    plan: Plan,
    out: Path,
    networks: Networks,
    protocol: Protocol,
    *,
    items: Sequence[Item] | None = None,
    locate: Callable[[Item], Path | None] | None = None,
    progress: Progress = lambda what, done, of: None,
) -> int:
    """Measures the videos that are there and not measured yet; returns how many are there.

    Args:
        plan: the suite, with the pictures that were used.
        out: where `measures/` goes.
        networks, protocol: with what and how.
        items: which; all by default.
        locate: where an item's video lies; in the plan's folder by default.
        progress: hears how far it is.

    Raises:
        InputError: a video or a reference cannot be read.
    """
    items = plan.items() if items is None else items
    locate = locate or (lambda item: find_video(plan.videos, item))
    references = {subject.name: ReferencePicture(subject.image, networks, protocol) for subject in plan.suite.subjects}
    measurer = Measurer(protocol, networks, references, plan.fps)
    found = 0
    for number, item in enumerate(items):
        progress("measuring", number, len(items))
        if (video := locate(item)) is not None:
            measurer.measure(item, video, measures_path(out, item))
            found += 1
    progress("measuring", len(items), len(items))
    return found


def measure_videos(
    videos: Path,
    suite: Suite,
    out: Path,
    networks: Networks,
    protocol: Protocol,
    *,
    shard: Shard = WHOLE,
    progress: Progress = lambda what, done, of: None,
) -> Plan:
    """Measures videos of any method that lie as the suite wants them.

    Raises:
        InputError: there is none of the suite's, or one cannot be read.
    """
    if not videos.is_dir():
        raise InputError(f"{videos} is not a folder: it should hold SUBJECT/PROMPT-SEED.mp4")
    plan = Plan(suite, protocol.name, videos)
    items = plan.items()
    if not any(find_video(videos, item) for item in items):
        first = items[0]
        raise InputError(
            f"{videos} holds no video of the suite: the first would be {first.subject.name}/{first.name}.mp4, .gif or "
            "a folder of PNG frames"
        )
    if unknown := strangers(videos, suite):
        logger.warning("%d videos or folders in %s are not of the suite, first %s", len(unknown), videos, unknown[0])
    write_plan(plan, out)
    measure_plan(plan, out, networks, protocol, items=shard.of(items), progress=progress)
    return plan


def first_size(videos: Path, suite: Suite) -> tuple[int, int] | None:
    """Height and width of the first video that is there; None when none is."""
    found = next(filter(None, (find_video(videos, item) for item in suite.items())), None)
    return None if found is None else read_video(found).shape[1:3]


def write_report(out: Path, others: Iterable[Path] = (), *, paper: str | None = None) -> list[Path]:
    """Writes `report.json`, `report.md`, `videos.csv`, contact sheets and a plot; returns what was written.

    Raises:
        InputError: a folder holds no results, or the paper has no such table.
    """
    report = build_report(out, paper=paper)
    plan, comparisons = read_plan(out), {str(other): compare(out, other) for other in others}
    measured = collect(plan, out)
    shown: list[str] = []
    metric = pictures.ranking_metric(report)
    if metric:
        shown += pictures.write_sheets(out, plan, measured, metric)
        if report["metrics"]["clip_t"]["mean"] is not None and pictures.write_plot(
            out / "tradeoff.png", report, metric
        ):
            shown.append("tradeoff.png")
    texts = {
        "report.json": to_json(report, indent=2) + "\n",
        "report.md": tables.markdown(report, comparisons, shown),
        "videos.csv": tables.comma_separated(measured),
    }
    if comparisons:
        differences = {name: comparison.differences for name, comparison in comparisons.items()}
        texts["differences.json"] = to_json(differences, indent=2) + "\n"
    for name, text in texts.items():
        with atomic_path(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [out / name for name in (*texts, *shown)]
