"""A run's curves as one picture, drawn from its CSV files: losses, losses per noise level, reference gain, speed."""

from __future__ import annotations

import csv
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from videomaker.files import atomic_path

PLOTS = "plots.png"
Curves = dict[str, tuple[list[int], list[float]]]


def read_curves(path: Path) -> Curves:
    """Steps and values of every column of a run's CSV file, where it has some; none without the file."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in (rows[0] if rows else {}) if name != "step"]
    given = {name: [row for row in rows if row[name]] for name in names}
    return {name: ([int(r["step"]) for r in some], [float(r[name]) for r in some]) for name, some in given.items()}


def write_plots(run: Path) -> Path | None:
    """Draws `plots.png` into a run's folder anew; None where matplotlib is not installed or there is nothing yet."""
    metrics, held_out = read_curves(run / "metrics.csv"), read_curves(run / "held_out.csv")
    if not metrics or not find_spec("matplotlib"):
        return None
    from matplotlib.figure import Figure  # a second of import

    panels: dict[str, Curves] = {
        "training loss": {name: metrics[name] for name in ("loss", "video", "reference") if name in metrics},
        "held-out loss by timestep": _starting(held_out, "video_"),
        "reference gain by timestep": _starting(held_out, "reference_gain_"),
        "clips per second": {name: metrics[name] for name in ("clips_per_second",) if name in metrics},
    }
    shown = {title: curves for title, curves in panels.items() if curves}
    figure = Figure(figsize=(6 * min(2, len(shown)), 3.5 * -(-len(shown) // 2)), layout="constrained")
    for axes, (title, curves) in zip(_axes(figure, len(shown)), shown.items(), strict=True):
        for name, (steps, values) in curves.items():
            axes.plot(steps, values, label=name, linewidth=1)
        axes.set(title=title, xlabel="step")
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    with atomic_path(run / PLOTS) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    return run / PLOTS


def try_plots(run: Path, report: Callable[[str], object]) -> None:
    """As `write_plots`; what goes wrong is reported: a picture is worth neither a run nor the error that ended one."""
    try:
        write_plots(run)
    except Exception as error:  # matplotlib's, the disk's, or of a file that somebody edited
        report(f"{PLOTS} cannot be drawn: {type(error).__name__}: {error}")


def _axes(figure, count: int) -> list:
    columns = min(2, count)
    return [figure.add_subplot(-(-count // columns), columns, i + 1) for i in range(count)]


def _starting(curves: Curves, prefix: str) -> Curves:
    return {name.removeprefix(prefix): curve for name, curve in curves.items() if name.startswith(prefix)}
