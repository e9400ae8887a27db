"""A report as text: Markdown for people, CSV for other programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from .opens2v import OPENS2V
from .opens2v import TITLES as OPENS2V_TITLES
from .protocol import METRICS, TITLES
from .report import Comparison

_ROWS = {
    "still": "the reference held still (copies best)",
    "other_subject": "these videos against another subject's reference (floor)",
    "plain": "plain AnimateDiff from the same noise",
}


def markdown(report: dict[str, Any], comparisons: Mapping[str, Comparison], pictures: Sequence[str]) -> str:
    """The report as Markdown.

    Args:
        report: of `videomaker.evaluation.report.build_report`.
        comparisons: with other reports, by their names.
        pictures: files beside the report to show.
    """
    suite = report["suite"]
    parts = [
        "# Evaluation",
        f"{suite['measured']} of {suite['videos']} videos: {len(suite['subjects'])} subjects, up to "
        f"{suite['prompts']} prompts, {len(suite['seeds'])} seeds ({', '.join(map(str, suite['seeds']))}). "
        f"Protocol `{report['protocol']['name']}`. In brackets 95 % intervals by a bootstrap over subjects.",
        _table(["", *(TITLES[name] for name in METRICS)], _main_rows(report)),
        _missing(report),
    ]
    if report["published"]:
        table = report["published"]
        parts.append(
            f"Rows marked † are quoted, not measured: {table['label']} of {table['source']} ({table['caption']})."
        )
    if report["opens2v"]:
        parts += ["## OpenS2V-Eval's measures", *_opens2v(report["opens2v"])]
    for name, comparison in comparisons.items():
        parts += [f"## Against {name}", "This report minus the other, video by video."]
        parts += [_differences(comparison.differences), "\n".join(f"- {note}" for note in comparison.notes)]
    parts += [_split("By kind of prompt", report["by_kind"]), _split("By subject", report["by_subject"])]
    parts += [f"![{name}]({name})" for name in pictures]
    parts += ["## How it was measured", "\n".join(f"- {line}" for line in _foot(report))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _main_rows(report: dict[str, Any]) -> list[list[str]]:
    rows = [["**this**", *(_cell(report["metrics"][name]) for name in METRICS)]]
    rows += [[_ROWS[row], *(_cell(values[name]) for name in METRICS)] for row, values in report["rows"].items()]
    for row in (report["published"] or {"rows": []})["rows"]:
        rows.append([f"{row['method']} † ({row['base']})", *(_quoted(row["metrics"].get(name)) for name in METRICS)])
    return rows


def _cell(value: dict[str, Any]) -> str:
    if value["mean"] is None:
        return "—"
    return f"{value['mean']:.4f} [{value['low']:.4f}, {value['high']:.4f}]"


def _quoted(value: float | None) -> str:
    return "—" if value is None else f"{value:.4f}"


def _missing(report: dict[str, Any]) -> str:
    lines = [f"- {TITLES[name]}: {value['reason']}" for name, value in report["metrics"].items() if "reason" in value]
    return _list_missing(lines)


def _opens2v(values: dict[str, Any]) -> list[str]:
    measured = [name for name, value in values.items() if value["mean"] is not None]
    rows = [[OPENS2V_TITLES[name], _cell(values[name])] for name in measured]
    lines = [f"- {OPENS2V_TITLES[name]}: {value['reason']}" for name, value in values.items() if name not in measured]
    return [_table(["", "mean [95 %]"], rows) if rows else "", _list_missing(lines)]


def _list_missing(lines: Sequence[str]) -> str:
    return "Not measured:\n\n" + "\n".join(lines) if lines else ""


def _differences(differences: dict[str, Any]) -> str:
    titles = TITLES | OPENS2V_TITLES
    rows = [[titles[name], _signed(value), str(value["count"])] for name, value in differences.items()]
    return _table(["", "difference [95 %]", "videos"], rows)


def _signed(value: dict[str, Any]) -> str:
    return f"{value['mean']:+.4f} [{value['low']:+.4f}, {value['high']:+.4f}]"


def _split(title: str, parts: dict[str, dict[str, Any]]) -> str:
    if len(parts) < 2:
        return ""
    rows = [[part or "(none)", *(_quoted(values[name]["mean"]) for name in METRICS)] for part, values in parts.items()]
    return f"## {title}\n\n" + _table(["", *(TITLES[name] for name in METRICS)], rows)


def _foot(report: dict[str, Any]) -> list[str]:
    lines = [*report["protocol"]["lines"], *report["notes"]]
    if report["face_frames"] is not None:
        lines.append(f"{report['face_frames']:.1%} of the frames show a face that the detector finds.")
    return lines + [f"{group}: {', '.join(digests)}" for group, digests in report["networks"].items()]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def comma_separated(measured: Sequence[dict[str, Any]]) -> str:
    """One line a video: subject, prompt, seed and the value of each measure, empty where there is none."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    more = [name for name in OPENS2V if any(name in measures["metrics"] for measures in measured)]
    writer.writerow(["subject", "prompt_index", "seed", "kind", "prompt", *METRICS, *more])
    for measures in measured:
        values = [measures["metrics"].get(name, {}).get("value") for name in (*METRICS, *more)]
        about = [measures[key] for key in ("subject", "prompt_index", "seed", "kind", "prompt")]
        writer.writerow([*about, *("" if value is None else value for value in values)])
    return file.getvalue()
