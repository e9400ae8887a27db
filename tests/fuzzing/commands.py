"""Commands as they are mistyped, and commands that get something else than they want."""

from __future__ import annotations

from pathlib import Path

import typer

from .case import WRONG_CONTENTS, Case, Rng, no_file
from .world import World

# Commands that wait for requests, or whose work is a training's: only their words are tried.
WORDS_ONLY = {"serve", "worker", "submit"}


def every() -> dict[tuple[str, ...], list[str]]:
    """All commands of the program, with their options."""
    from videomaker.cli import app

    found: dict[tuple[str, ...], list[str]] = {}

    def walk(command, name: tuple[str, ...]) -> None:
        if hasattr(command, "commands"):
            for key, inner in command.commands.items():
                walk(inner, (*name, key))
        else:
            found[name] = [option for parameter in command.params for option in parameter.opts if option[:1] == "-"]

    walk(typer.main.get_command(app), ())
    return found


def case(rng: Rng, world: World, folder: Path) -> Case:
    """A command line that cannot be, for any command."""
    make = rng.choices((_mistyped, _lacking, _wrong_file, _repeated, _help), (3, 2, 5, 2, 1))[0]
    return make(rng, world, folder)


def _mistyped(rng: Rng, world: World, folder: Path) -> Case:
    commands = every()
    name = rng.pick(commands)
    option = rng.pick(commands[name] or ["--x"])
    words = rng.pick((
        [*name, option[:-1] + "zz"], [*name[:-1], name[-1] + "x"], [*name, option], [name[0].upper(), *name[1:]],
        [*name, "--"], [*name, "\udcff"], [*name, option + "=" + "x" * 200, "--nope"], ["--nope", *name],
        ["", *name], [*name, "-", "-", "-", "-", "-"], [*name, "--help-me"],
    ))  # fmt: skip
    works_at_once = name[0] in WORDS_ONLY or name == ("evaluate", "sprites")
    if works_at_once and words[-1] not in ("--help-me", "--nope"):
        words = [*words, "--nope"]  # or it would wait for requests, or make 200 videos
    return Case(f"{' '.join(words)[:60]!r}", words, "either" if words[-1] in ("--", option, "-") else "refused", ())


def _lacking(rng: Rng, world: World, folder: Path) -> Case:
    skipped = (*WORDS_ONLY, "info", "data")
    name = rng.pick([name for name in every() if name[0] not in skipped and name != ("evaluate", "sprites")])
    return Case(f"{' '.join(name)} alone", [*name], "either", ())


def _wrong_file(rng: Rng, world: World, folder: Path) -> Case:
    """A file or folder that is not what the command works on."""
    path = folder / rng.pick(("x", "x.bin", "x.safetensors", "x.jsonl", "x.yaml", "x.json", "x.mp4"))
    if rng.random() < 0.4:
        what, path = no_file(folder, rng, path.name)
    elif rng.random() < 0.3:
        what = "an empty folder"
        path.mkdir()
    else:
        what = rng.pick(WRONG_CONTENTS)
        path.write_bytes(WRONG_CONTENTS[what])
    given, out, model = str(path), str(folder / "out"), str(world.model)
    words = rng.pick((
        ["export", given], ["export", given, "--pipeline", "-o", out], ["convert", given, out + ".safetensors"],
        ["convert", str(world.weights), out + ".safetensors", "--model", given],
        ["warmup", "--save", out, "--model", given], ["data", "check", given],
        ["data", "index", "--layout", "folder", "--root", given, "--out", out],
        ["data", "index", "--layout", "celebv-text", "--root", given, "--out", out],
        ["data", "index", "--layout", "videobooth", "--root", given, "--out", out],
        ["data", "shard", given, "--out", out], ["data", "cache", given, "--model", model, "--out", out],
        ["data", "cache", str(world.clips / "manifest.jsonl"), "--model", given, "--out", out],
        ["evaluate", "run", given, "-o", out, "--model", model], ["evaluate", "sprites", "--model", given, "-o", out],
        ["evaluate", "measure", given, "-o", out], ["evaluate", "compare", given, given],
        ["data", "highlight", given, "--detector", given, "--segmenter", given, "--out", out],
    ))  # fmt: skip
    empty = words[:2] == ["data", "index"] and what == "an empty folder"
    return Case(f"{' '.join(words[:2])}: {what}", words, "either" if empty else "refused", ("out*", "*.checked"))


def _repeated(rng: Rng, world: World, folder: Path) -> Case:
    """Options given twice, and options that exclude one another."""
    words = rng.pick((
        ["--seed", "1", "--seed", "2"], ["--output", "out.mp4", "--output", "out.gif"],
        ["--artifacts", "x"], ["--negative-prompt", "a", "--negative-preset", "people"],
        ["--from-json", str(world.record)], ["--box", "0,0,9,9", "--mask", str(world.picture)],
        ["--highlight", "dog", "--mask", str(world.picture)], ["--combine", "pairs", "-p", "another"],
        ["--seed", "0-3", "-o", "out.mp4"], ["-p", "another", "-o", "out.gif"], ["--weights", "a", "--weights", "b"],
    ))  # fmt: skip
    good = ("--seed", "--output")
    expect = "either" if words[0] in good and words[1] in ("1", "out.mp4") else "refused"
    if words[0] in ("--box", "--highlight"):
        expect = "either"
    return Case(f"generate with {' '.join(words)[:60]}", [*world.generate(), *words], expect)


def _help(rng: Rng, world: World, folder: Path) -> Case:
    name = rng.pick(every())
    return Case(f"{' '.join(name)} --help", [*name, "--help"], "works", ())
