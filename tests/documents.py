"""Commands and snippets of the README and the manual, and what reads each command without running it."""

from __future__ import annotations

import argparse
import os
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest import mock

import pytest
import typer

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`((?:videomaker|python|make|pytest|deepspeed) [^`]+)`")
# Their words are not ours to read; that the line can be split is all that is checked.
FOREIGN = {
    "apt-get",
    "cd",
    "cosign",
    "curl",
    "docker",
    "export",
    "openssl",
    "podman",
    "psql",
    "ray",
    "serve",
    "sudo",
    "systemctl",
}


@dataclass(frozen=True)
class Shown:
    """A command or snippet of a page."""

    page: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(*languages: str) -> list[Shown]:
    """The fenced blocks in these languages, in the order of the pages."""
    return [
        Shown(page.name, text[: match.start()].count("\n") + 1, match[2])
        for page in PAGES
        if page.is_file()
        for text in [page.read_text(encoding="utf-8")]
        for match in _FENCE.finditer(text)
        if match[1] in languages
    ]


def commands() -> list[Shown]:
    """Every command: the lines of shell blocks, and those between backticks that are complete."""
    found = []
    for block in blocks("bash", "console", "sh", "shell"):
        text, lines = block.text.replace("\\\n", " "), []
        for line in text.splitlines():
            lines += [line.strip().removeprefix("$ ")] if line.strip() else []
        found += [Shown(block.page, block.line, line) for line in lines if not line.startswith("#")]
    for page in filter(Path.is_file, PAGES):
        text = _FENCE.sub(lambda match: "\n" * match[0].count("\n"), page.read_text(encoding="utf-8"))
        for match in _INLINE.finditer(text):
            if not re.search(r"…|<|\b[A-Z]{3,}\b(?!=)", match[1]):  # a placeholder: not meant to be typed
                found.append(Shown(page.name, text[: match.start()].count("\n") + 1, " ".join(match[1].split())))
    return found


def read(command: str) -> None:
    """Fails unless the program that `command` names takes its arguments."""
    words = shlex.split(command, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    if not words or words[0] in FOREIGN:
        return
    program, *arguments = words
    if program == "python" and arguments[0].startswith(("bench/", "kernels/hub/")):
        return read_script(ROOT / arguments[0], arguments[1:])
    readers: dict[str, Callable[[list[str]], None]] = {
        "videomaker": read_videomaker,
        "python": read_training,
        "deepspeed": read_training,
        "make": read_make,
        "pip": read_pip,
        "pytest": read_pytest,
        "source": lambda _: None,
        "pre-commit": lambda _: None,
    }
    assert program in readers, f"no test knows how to read {program!r}"
    return readers[program](arguments)


def read_videomaker(arguments: list[str]) -> None:
    """Parses as the command line does, without running."""
    is_name = not any(word.startswith("-") for word in arguments)
    if arguments == ["--help"]:
        return
    from videomaker.cli import app

    command, context, name = typer.main.get_command(app), None, "videomaker"
    while True:
        if is_name and not arguments:  # "`videomaker convert` reads …" says only that there is such a command
            return
        context = command.make_context(name, list(arguments), parent=context)
        if not hasattr(command, "resolve_command") or not (context._protected_args or context.args):
            return
        rest = [*context._protected_args, *context.args]
        name, command, arguments = command.resolve_command(context, rest)


def read_training(arguments: list[str]) -> None:
    """Resolves the configuration, of whose files a manual's are not there."""
    from videomaker.train.main import parse_arguments
    from videomaker.train.overrides import load_config

    assert "train/main.py" in arguments, arguments
    options = parse_arguments(arguments[arguments.index("train/main.py") + 1 :])
    load_config(options.config, options.overrides)


class _Parsed(Exception):
    pass


def read_script(script: Path, arguments: list[str]) -> None:
    """Runs a script up to where its arguments are parsed."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self: argparse.ArgumentParser, given: list[str] | None = None, *_: object) -> None:
        parse(self, given)
        raise _Parsed

    path = [str(script.parent), *sys.path]
    with (
        mock.patch.object(sys, "argv", [str(script), *arguments]),
        mock.patch.object(sys, "path", path),
        mock.patch.dict(os.environ),  # some set what is read when a library is imported
        mock.patch.object(argparse.ArgumentParser, "parse_args", parse_and_stop),
        pytest.raises(_Parsed),
    ):
        runpy.run_path(str(script), run_name="__main__")


def read_make(arguments: list[str]) -> None:
    """The targets are there."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {word for word in arguments if "=" not in word} <= targets, arguments


@cache
def extras() -> set[str]:
    """What `setup.py` offers."""
    with mock.patch("setuptools.setup") as setup, mock.patch.object(sys, "path", [str(ROOT), *sys.path]):
        runpy.run_path(str(ROOT / "setup.py"))
    return set(setup.call_args.kwargs["extras_require"])


def read_pip(arguments: list[str]) -> None:
    """The extras of this package exist; its name is right."""
    name = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"]
    assert arguments[0] == "install", arguments
    for wanted in re.findall(rf"(?:^|\s)(?:\.|{name})\[([\w,-]+)\]", " ".join(arguments)):
        assert set(wanted.split(",")) <= extras(), wanted


def read_pytest(arguments: list[str]) -> None:
    """The files are there, and hold the words that are selected by."""
    files = [ROOT / word for word in arguments if word.startswith("tests/")]
    assert files and all(file.exists() for file in files), arguments
    if "-k" in arguments:
        word = arguments[arguments.index("-k") + 1]
        assert any(word in file.read_text() for file in files), f"no test named {word} in {files}"
