"""What a folder of results was made for: the suite, the pictures used, the videos; a report needs no more."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from videomaker.errors import InputError
from videomaker.files import atomic_path, check_results_folder, to_json

from .suite import Item, Prompt, Subject, Suite

PLAN_FILE = "plan.json"
REPORT_FILES = (  # of `run.write_report`
    "report.json", "report.md", "videos.csv", "differences.json", "best.png", "worst.png", "tradeoff.png",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """A suite with what its results were made with.

    Args:
        suite: subjects (their images are the pictures that were used), prompts, seeds.
        protocol: its name.
        videos: the folder of the videos.
        made_by: of `run`: the recipe and the model's digests; None for videos from elsewhere.
    """

    suite: Suite
    protocol: str
    videos: Path
    made_by: dict[str, Any] | None = None

    @property
    def fps(self) -> float:
        """Frames a second of videos whose files do not tell: what ours were made at, or else what the suite says."""
        return self.made_by["settings"]["fps"] if self.made_by else self.suite.fps

    def items(self) -> list[Item]:
        """Every video asked for."""
        return self.suite.items()


def check_place(out: Path) -> None:
    """Refuses a folder whose files a report would replace, unless they are of earlier results: before the work.

    Raises:
        InputError: `out` is no folder, or holds such files.
    """
    check_results_folder(out, (PLAN_FILE, *REPORT_FILES), _is_plan)


def _is_plan(out: Path) -> bool:
    try:
        read_plan(out)
    except InputError:
        return False
    return True


def write_plan(plan: Plan, out: Path) -> None:
    """Writes `OUT/plan.json`; paths inside OUT are relative, so that the folder can move.

    Raises:
        InputError: see `check_place`.
    """
    check_place(out)
    values = {
        "protocol": plan.protocol,
        "videos": _relative(plan.videos, out),
        "fps": plan.suite.fps,
        "seeds": plan.suite.seeds,
        "subjects": [
            {
                "name": subject.name,
                "class": subject.kind,
                "image": _relative(subject.image, out),
                "prompts": [asdict(prompt) for prompt in plan.suite.prompts[subject.name]],
            }
            for subject in plan.suite.subjects
        ],
        "made_by": plan.made_by,
    }
    with atomic_path(out / PLAN_FILE) as temporary:
        temporary.write_text(to_json(values, indent=1) + "\n", encoding="utf-8")


def _relative(path: Path, out: Path) -> str:
    path, out = path.resolve(), out.resolve()
    return os.path.relpath(path, out) if path.is_relative_to(out) else str(path)


def read_plan(out: Path) -> Plan:
    """Reads `OUT/plan.json`.

    Raises:
        InputError: it is not there or not one.
    """
    try:
        values = json.loads((out / PLAN_FILE).read_text(encoding="utf-8"))
        subjects = values["subjects"]
        suite = Suite(
            tuple(Subject(entry["name"], out / entry["image"], entry["class"]) for entry in subjects),
            {entry["name"]: tuple(Prompt(**prompt) for prompt in entry["prompts"]) for entry in subjects},
            tuple(values["seeds"]),
            values["fps"],
        )
        return Plan(suite, values["protocol"], out / values["videos"], values["made_by"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{out} holds no results of `videomaker evaluate run` or `measure` ({PLAN_FILE} is missing or damaged)"
        ) from error
