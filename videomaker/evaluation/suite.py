"""A suite: subjects, prompts and seeds in a folder, and the videos that they ask for."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from videomaker.errors import InputError
from videomaker.files import read_text
from videomaker.jobs.request import check_prompt

from .published import PROMPT_SETS, prompt_set

SUITE_FILE = "suite.yaml"
_NAME = re.compile(r"[\w][\w .+-]{0,59}")  # it becomes the name of a folder
_SUBJECT_KEYS = {"name", "image", "class", "mask", "box"}
_SUITE_KEYS = {"subjects", "prompts", "seeds", "fps"}


@dataclass(frozen=True)
class Subject:
    """One subject: a name (that of its folder of videos), its picture, and what it is."""

    name: str
    image: Path
    kind: str = ""  # its class, such as "person" or "dog": what to detect, and which prompts are its own
    mask: Path | None = None
    box: tuple[float, float, float, float] | None = None  # x1, y1, x2, y2 in pixels


@dataclass(frozen=True)
class Prompt:
    """One prompt, the heading it stood under, and the class of subjects it is for ("" for all)."""

    text: str
    kind: str = ""
    subject_kind: str = ""


@dataclass(frozen=True)
class Item:
    """One video of a suite; `name` is that of its file without suffix: `PROMPT-SEED`, prompts counted from 0."""

    subject: Subject
    index: int
    prompt: Prompt
    seed: int

    @property
    def name(self) -> str:
        """Such as `3-42`."""
        return f"{self.index}-{self.seed}"


@dataclass(frozen=True)
class Suite:
    """What is generated and measured. `fps` is that of others' videos whose files do not tell, such as PNG folders."""

    subjects: tuple[Subject, ...]
    prompts: dict[str, tuple[Prompt, ...]]  # by subject
    seeds: tuple[int, ...]
    fps: float = 8

    def items(self) -> list[Item]:
        """Every video, subject by subject."""
        return [
            Item(subject, index, prompt, seed)
            for subject in self.subjects
            for (index, prompt), seed in product(enumerate(self.prompts[subject.name]), self.seeds)
        ]


def read_suite(path: Path) -> Suite:
    """Reads a suite: a folder with `suite.yaml`, or that file. Paths in it are relative to it.

    `subjects` is a list of `{name, image, class, mask, box}` (name and image needed); `prompts` a `.txt` file, one of
    the sets `people`, `people-2`, `objects`, a list of texts, or `{class: one of these}`; `seeds` a list of numbers
    (default 42).

    Raises:
        InputError: the file is missing or says something that is not understood; the message names it.
    """
    import yaml

    file = path / SUITE_FILE if path.is_dir() else path
    try:
        values = yaml.safe_load(read_text(file))
    except (InputError, yaml.YAMLError, RecursionError) as error:
        reason = str(error).replace("\n", " ")
        raise InputError(f"suite {file} cannot be read: {reason}; a suite is a folder with {SUITE_FILE}") from error
    _check_keys(values, _SUITE_KEYS, f"suite {file}")
    subjects = tuple(_subject(entry, file) for entry in _list(values, "subjects", file))
    names = [subject.name.casefold() for subject in subjects]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"suite {file}: two subjects are called {twice[0]!r}; results lie in folders of that name")
    seeds = tuple(dict.fromkeys(_seed(seed, file) for seed in _list({"seeds": [42], **values}, "seeds", file)))
    prompts = {subject.name: _prompts_of(subject, values.get("prompts"), file) for subject in subjects}
    return Suite(subjects, prompts, seeds, _fps(values.get("fps", 8), file))


def _check_keys(values: Any, known: set[str], where: str) -> None:
    if not isinstance(values, dict):
        raise InputError(f"{where} should hold {', '.join(sorted(known))}")
    if unknown := sorted(map(str, values.keys() - known)):
        raise InputError(f"{where} has {unknown[0]!r}, which is not one of {', '.join(sorted(known))}")


def _list(values: dict[str, Any], key: str, file: Path) -> list:
    found = values.get(key)
    if not isinstance(found, list) or not found:
        raise InputError(f"suite {file}: {key} should be a list that is not empty")
    return found


def _subject(entry: Any, file: Path) -> Subject:
    _check_keys(entry, _SUBJECT_KEYS, f"a subject of {file}")
    name, image, mask, kind, box = (entry.get(key) for key in ("name", "image", "mask", "class", "box"))
    if type(name) is int:  # YAML reads 5 so
        name = str(name)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(
            f"suite {file}: a subject's name {name!r:.120} should be up to 60 letters, digits, '-', '_' and blanks"
        )
    if not isinstance(image, str):
        raise InputError(f"suite {file}: subject {name!r} needs an image")
    if box is not None and not _is_box(box):
        raise InputError(f"suite {file}: the box of {name!r} should be [x1, y1, x2, y2], not {box!r}")
    if not (mask is None or isinstance(mask, str)):
        raise InputError(f"suite {file}: the mask of {name!r} should be a picture's path, not {mask!r}")
    if not (kind is None or isinstance(kind, str)):
        raise InputError(f"suite {file}: the class of {name!r} should be a word such as dog, not {kind!r}")
    return Subject(
        name,
        _existing(file.parent / image, f"image of {name!r}"),
        kind or "",
        None if mask is None else _existing(file.parent / mask, f"mask of {name!r}"),
        (float(box[0]), float(box[1]), float(box[2]), float(box[3])) if box else None,
    )


def _is_box(value: Any) -> bool:
    if not (isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))):
        return False
    return value[0] < value[2] and value[1] < value[3]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -math.inf < value < math.inf


def _existing(path: Path, what: str) -> Path:
    if not os.path.isfile(path):  # Path.is_file raises for a name that is too long
        raise InputError(f"{what}: {str(path)[:200]} does not exist")
    return path


def _seed(value: Any, file: Path) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise InputError(f"suite {file}: seed {value!r} should be a number from 0")
    return value


def _fps(value: Any, file: Path) -> float:
    if not _is_number(value) or not 0 < value <= 1000:
        raise InputError(f"suite {file}: fps {value!r} should be a positive number")
    return float(value)


def _prompts_of(subject: Subject, given: Any, file: Path) -> tuple[Prompt, ...]:
    source = given
    if isinstance(given, dict):
        if subject.kind not in given:
            raise InputError(f"suite {file}: prompts has no entry for the class {subject.kind!r} of {subject.name!r}")
        source = given[subject.kind]
    if isinstance(source, list) and source and all(isinstance(text, str) and text.strip() for text in source):
        prompts = [Prompt(text.strip()) for text in source]
    elif isinstance(source, str):
        prompts = read_prompt_file(prompt_set(source) if source in PROMPT_SETS else file.parent / source)
    else:
        raise InputError(
            f"suite {file}: prompts should be a .txt file, one of {', '.join(PROMPT_SETS)}, a list of texts, or "
            "{class: one of these}"
        )
    for prompt in prompts:
        check_prompt(prompt.text)
    own = tuple(prompt for prompt in prompts if prompt.subject_kind in ("", subject.kind))
    if not own:
        raise InputError(f"suite {file}: no prompt of {source} is for the class {subject.kind!r} of {subject.name!r}")
    return own


def read_prompt_file(path: Path) -> list[Prompt]:
    """Prompts, one a line; `# kind` or `# class / kind` above them says what they are and whose.

    Raises:
        InputError: the file cannot be read or holds no prompt.
    """
    try:
        lines = read_text(path).splitlines()
    except InputError as error:
        raise InputError(f"prompt file {path} cannot be read as UTF-8 text: {error}") from error
    prompts, heading = [], ("", "")
    for line in map(str.strip, lines):
        if line.startswith("#"):
            subject_kind, slash, kind = line.lstrip("# ").partition(" / ")
            heading = (subject_kind, kind) if slash else ("", subject_kind)
        elif line:
            prompts.append(Prompt(line, kind=heading[1], subject_kind=heading[0]))
    if not prompts:
        raise InputError(f"prompt file {path} holds no prompt: write one a line")
    return prompts
