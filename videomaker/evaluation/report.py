"""From files of measures to one report: means with intervals, rows that need no model, the paper's, other reports'."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from videomaker.errors import InputError

from . import published
from .intervals import estimate, paired_difference
from .kit import GROUP_OF
from .measure import measures_path, read_measures
from .opens2v import OPENS2V, UNAVAILABLE
from .plan import Plan, read_plan
from .protocol import AGAINST_REFERENCE, METRICS, TITLES, protocol_named

PLAIN = "plain"  # the folder of plain AnimateDiff's measures, below the results
Measures = dict[str, Any]


def collect(plan: Plan, out: Path) -> list[Measures]:
    """The measures that are there, in the suite's order."""
    found = (read_measures(measures_path(out, item)) for item in plan.items())
    return [measures for measures in found if measures]


def build_report(out: Path, *, paper: str | None = None) -> dict[str, Any]:
    """The report of a folder of results, as JSON: the same files give the same report.

    Args:
        out: a folder of `videomaker evaluate run` or `measure`.
        paper: a table of the paper to quote beside.

    Returns:
        "metrics" `{name: {"mean", "low", "high", "count"}}`, where what could not be measured has null and a "reason";
        "rows" of the same shape: the reference held still, another subject's reference, plain AnimateDiff; "opens2v"
        likewise, null where nobody asked; "by_kind", "by_subject", "face_frames", "published", "protocol", "suite",
        "networks", "notes".

    Raises:
        InputError: the folder holds no results.
    """
    plan = read_plan(out)
    measured = collect(plan, out)
    if not measured:
        raise InputError(f"{out} holds no measures yet: run `videomaker evaluate run` or `measure` with -o {out}")
    plain = collect(plan, out / PLAIN)
    rows = {
        "still": _estimates(measured, lambda m, name: m["still"].get(name)),
        "other_subject": _estimates(measured, lambda m, name: m["other_subject"].get(name)),
        PLAIN: _estimates(plain, _value) if plain else None,
    }
    return {
        "suite": {
            "subjects": [subject.name for subject in plan.suite.subjects],
            "prompts": max(len(prompts) for prompts in plan.suite.prompts.values()),
            "seeds": list(plan.suite.seeds),
            "videos": len(plan.items()),
            "measured": len(measured),
        },
        "protocol": {"name": plan.protocol, "lines": protocol_named(plan.protocol).describe()},
        "metrics": _estimates(measured, _value),
        "opens2v": _opens2v(measured),
        "face_frames": _share_of_faces(measured),
        "rows": {name: row for name, row in rows.items() if row},
        "by_subject": _split(measured, "subject"),
        "by_kind": _split(measured, "kind"),
        "networks": _networks(measured),
        "made_by": plan.made_by,
        "published": published.table(paper) if paper else None,
        "notes": _notes(plan, measured, plain),
    }


def _value(measures: Measures, name: str) -> float | None:
    return measures["metrics"].get(name, {}).get("value")


def _opens2v(measured: list[Measures]) -> dict[str, dict[str, Any]] | None:
    """OpenS2V-Eval's measures, where any video has one; None where they were not asked for."""
    if not any(name in measures["metrics"] for measures in measured for name in OPENS2V):
        return None
    found = {name: _estimate(measured, name, _value) for name in OPENS2V}
    return {
        name: {**value, "reason": UNAVAILABLE[name]} if name in UNAVAILABLE else value for name, value in found.items()
    }


def _estimates(
    measured: Iterable[Measures], pick: Callable[[Measures, str], float | None]
) -> dict[str, dict[str, Any]]:
    measured = list(measured)
    return {name: _estimate(measured, name, pick) for name in METRICS}


def _estimate(measured: list[Measures], name: str, pick: Callable[[Measures, str], float | None]) -> dict[str, Any]:
    groups: dict[str, list[float]] = {}
    for measures in measured:
        if (value := pick(measures, name)) is not None:
            groups.setdefault(measures["subject"], []).append(value)
    if groups:
        return asdict(estimate(groups))
    reasons = [measures["metrics"].get(name, {}).get("reason") for measures in measured]
    reason = next(filter(None, reasons), "not defined for this row")
    return {"mean": None, "low": None, "high": None, "count": 0, "reason": reason}


def _split(measured: list[Measures], key: str) -> dict[str, dict[str, dict[str, Any]]]:
    parts: dict[str, list[Measures]] = {}
    for measures in measured:
        parts.setdefault(measures[key], []).append(measures)
    return {part: _estimates(of_part, _value) for part, of_part in parts.items()} if any(parts) else {}


def _share_of_faces(measured: list[Measures]) -> float | None:
    """The share of frames with a face: leaving frames out rewards hidden faces, so it stands beside the measure."""
    frames = [value for measures in measured for value in measures["metrics"]["face"]["frames"]]
    return sum(value is not None for value in frames) / len(frames) if frames else None


def _networks(measured: list[Measures]) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {}
    for measures in measured:
        for group, digest in measures["networks"].items():
            found.setdefault(group, set()).add(digest)
    return {group: sorted(digests) for group, digests in sorted(found.items())}


def _notes(plan: Plan, measured: list[Measures], plain: list[Measures]) -> list[str]:
    notes, asked = [], len(plan.items())
    if len(measured) < asked:
        notes.append(f"Incomplete: {len(measured)} of {asked} videos are measured.")
    if 0 < len(plain) < asked:
        notes.append(f"Incomplete: the row of plain AnimateDiff stands on {len(plain)} of {asked} measurements.")
    for group, digests in _networks(measured).items():
        if len(digests) > 1:
            notes.append(f"{group}: measured by {len(digests)} different networks; measure again with one.")
        if group == "flow" and any(digest.startswith("OpenCV") for digest in digests):
            notes.append("Dynamic degree by OpenCV's DIS flow, not by the paper's RAFT.")
        if any(digest.startswith("dlib") for digest in digests):
            notes.append("Face by dlib's network: its cosines are no ArcFace's, do not compare them with the paper's.")
    notes.append(
        "Frames were measured as they were generated, without loss."
        if plan.made_by
        else "Frames were read from the videos' files: H.264 moves Face by .03-.07, GIF by .06-.08."
    )
    return notes


@dataclass(frozen=True)
class Comparison:
    """The paired differences of two reports, `{metric: {mean, low, high, count}}`, and what is not in them."""

    differences: dict[str, dict[str, Any]]
    notes: tuple[str, ...] = ()


def compare(out: Path, other: Path) -> Comparison:
    """The paired differences of two reports of one suite, out minus other; of what is measured against a reference,
    those of videos that were measured against the same picture.

    Raises:
        InputError: one of them holds no results, they share no video, or their protocols or networks differ.
    """
    plans, values = {}, {}
    for folder in (out, other):
        plans[folder] = read_plan(folder)
        values[folder] = collect(plans[folder], folder)
    if plans[out].protocol != plans[other].protocol:
        raise InputError(f"{out} was measured by {plans[out].protocol!r} and {other} by {plans[other].protocol!r}")
    ours, theirs = _networks(values[out]), _networks(values[other])
    result = {}
    for name, group in GROUP_OF.items():
        if ours.get(group) != theirs.get(group):
            continue  # another network's numbers: not comparable
        difference = paired_difference(_by_video(values[out], name), _by_video(values[other], name))
        if difference:
            result[name] = asdict(difference)
    notes = _of_other_pictures(values[out], values[other])
    if not result:
        why = "; ".join(["nothing can be paired", *notes])
        raise InputError(f"{out} and {other} share no video that the same networks measured: {why}")
    return Comparison(result, notes)


def _of_other_pictures(ours: list[Measures], theirs: list[Measures]) -> tuple[str, ...]:
    """What is said of videos that the two measured against different pictures."""
    mine, others = (
        {(m["subject"], m["prompt"], m["seed"]): m["made_from"]["reference_sha256"] for m in measured}
        for measured in (ours, theirs)
    )
    count = sum(mine[video] != others[video] for video in mine.keys() & others.keys())
    titles = ", ".join(TITLES[name] for name in AGAINST_REFERENCE)
    return (f"{titles}: without {count} videos that were measured against other reference pictures",) if count else ()


def _by_video(measured: list[Measures], name: str) -> Mapping[str, Mapping[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for measures in measured:
        if (value := _value(measures, name)) is not None:
            video = f"{measures['prompt']}\0{measures['seed']}"
            if name in AGAINST_REFERENCE:
                video += f"\0{measures['made_from']['reference_sha256']}"
            found.setdefault(measures["subject"], {})[video] = value
    return found
