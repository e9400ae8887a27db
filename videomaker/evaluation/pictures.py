"""A report as pictures: the best and the worst videos, and fidelity to the subject against that to the text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from videomaker import media
from videomaker.files import atomic_path

from .plan import Plan
from .protocol import TITLES
from .videos import find_video, read_video

SHEET_ROWS = 8
FIDELITY_ORDER = ("face", "dino_i", "clip_i")  # the first that was measured ranks the videos


def ranking_metric(report: dict[str, Any]) -> str | None:
    """The measure of subject fidelity that ranks and is drawn; None when none was measured."""
    return next((name for name in FIDELITY_ORDER if report["metrics"][name]["mean"] is not None), None)


def write_sheets(out: Path, plan: Plan, measured: Sequence[dict[str, Any]], metric: str) -> list[str]:
    """Writes `best.png` and `worst.png` by a measure; returns their names. Videos that are gone are left out."""
    ranked = [m for m in measured if m["metrics"][metric]["value"] is not None]
    ranked.sort(key=lambda m: (-m["metrics"][metric]["value"], m["subject"], m["prompt_index"], m["seed"]))
    items = {(item.subject.name, item.index, item.seed): item for item in plan.items()}
    names = []
    for name, chosen in (("best.png", ranked[:SHEET_ROWS]), ("worst.png", ranked[::-1][:SHEET_ROWS])):
        rows = []
        for measures in chosen:
            item = items[measures["subject"], measures["prompt_index"], measures["seed"]]
            video = find_video(plan.videos, item)
            if video is not None:
                value = measures["metrics"][metric]["value"]
                caption = f"{TITLES[metric]} {value:.3f}   {item.subject.name} {item.name}   {item.prompt.text}"
                reference = media.load_reference(item.subject.image)
                rows.append(media.sheet_row([reference], read_video(video, fps=plan.fps), caption))
        if rows:
            _save(media.contact_sheet(rows), out / name)
            names.append(name)
    return names


def _save(image: Image.Image, path: Path) -> None:
    with atomic_path(path) as temporary:
        image.save(temporary)


def write_plot(path: Path, report: dict[str, Any], metric: str) -> bool:
    """Draws fidelity against text alignment: every subject, their mean with its interval, the quoted rows.

    Returns:
        Whether it was drawn; matplotlib is optional.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(8.4, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    _draw_points(axes, report, metric)
    axes.set_xlabel(f"{TITLES['clip_t']} (text)")
    axes.set_ylabel(f"{TITLES[metric]} (subject)")
    axes.margins(0.1)
    figure.legend(loc="outside right upper", fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120, metadata={"Software": None})
    return True


def _draw_points(axes: Any, report: dict[str, Any], metric: str) -> None:
    def both(values: dict[str, Any]) -> tuple[float, float] | None:
        found = values["clip_t"]["mean"], values[metric]["mean"]
        return None if None in found else found

    subjects = list(filter(None, map(both, report["by_subject"].values())))
    if subjects:
        axes.scatter(*zip(*subjects, strict=True), s=14, color="tab:blue", alpha=0.4, label="a subject")
    if point := both(report["metrics"]):
        ends = [report["metrics"][name] for name in ("clip_t", metric)]
        errors = [[[max(0, end["mean"] - end["low"])], [max(0, end["high"] - end["mean"])]] for end in ends]
        axes.errorbar(*point, xerr=errors[0], yerr=errors[1], fmt="o", color="tab:blue", capsize=3, label="this")
    for name, marker in (("still", "s"), ("other_subject", "v"), ("plain", "x")):
        if name in report["rows"] and (point := both(report["rows"][name])):
            axes.scatter(*point, marker=marker, color="tab:grey", label=name.replace("_", " "))
    _draw_quoted(axes, report, metric)


def _draw_quoted(axes: Any, report: dict[str, Any], metric: str) -> None:
    """The paper's rows, numbered: names beside points that lie close would cover one another."""
    rows = [row for row in (report["published"] or {"rows": []})["rows"] if {"clip_t", metric} <= row["metrics"].keys()]
    for number, row in enumerate(rows, start=1):
        place = row["metrics"]["clip_t"], row["metrics"][metric]
        name = f"{number} {row['method']} (quoted)"
        axes.scatter(*place, marker="D", facecolors="none", edgecolors="tab:red", label=name)
        axes.annotate(str(number), place, xytext=(5, 3), textcoords="offset points", fontsize=8, color="tab:red")
