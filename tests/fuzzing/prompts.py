"""Prompts: as words, as files, in every encoding, and what is none."""

from __future__ import annotations

import codecs
from pathlib import Path

from videomaker.jobs.request import read_prompts

from .case import WRONG_CONTENTS, Case, Rng, no_file
from .world import World

GOOD = (
    "a fox", "Ein Fuchs läuft", "一只狐狸", "رجل يمشي", "🦊 runs", "a " * 60, "a\tfox", "(a fox:1.2), [b], <c>",
    "--prompt", "a fox \\n", "e\u0301te\u0301", "\u202ea fox", "a fox\u200b", "7", "#1 fox", "a  fox",
)  # fmt: skip
BAD = (
    "", " ", "\t", "\n", "\u200b", "\u00a0", "\ufeff", "\u2028", "a\udcfffox", "\ud800", "a\x07fox", "\x1b[31mred",
    "x" * 10_001, "x " * 50_000, "a\x00fox", "\x7f", "\u0301", "a\x85\x9ffox",
)  # fmt: skip
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "shift-jis", "koi8-r")


def case(rng: Rng, world: World, folder: Path) -> Case:
    """Words or a file, for the command line or for the reader."""
    make = rng.choices((_words, _file, _encoded, _wrong_content, _no_file, _long, _many), (4, 4, 2, 2, 2, 1, 1))[0]
    what, value, expect = make(rng, folder)
    if "\0" in value or rng.random() < 0.7:
        return Case(what, lambda: read_prompts([value]), expect)
    option = rng.pick(("-p", "--prompt"))
    words = ["generate", "--model", str(world.model), "-r", str(world.picture), *world.small()]
    if option == "-p" and value.startswith("-"):
        option = "--prompt"
    given = [f"--prompt={value}"] if option == "--prompt" else [option, value]
    return Case(what, [*words, *given, "-o", "outputs"], expect)


def _words(rng: Rng, folder: Path) -> tuple[str, str, str]:
    good = rng.random() < 0.4
    value = rng.pick(GOOD if good else BAD)
    return f"the prompt {value[:30]!r}", value, "works" if good else "refused"


def _file(rng: Rng, folder: Path) -> tuple[str, str, str]:
    lines = [rng.pick(GOOD) for _ in range(rng.randint(0, 3))]
    bad = [rng.pick([text for text in BAD if text.strip(" \t\n\u00a0\u2028") and "\ud800" not in text])] * (
        rng.random() < 0.4
    )
    comments = [rng.pick(("# no", "#", "", "   ", "#\t"))] * rng.randint(0, 2)
    every = [*lines, *bad, *comments]
    rng.shuffle(every)
    path = folder / rng.pick(("x.txt", "x.TXT", "a b.txt"))
    path.write_bytes(rng.pick(("\n", "\r\n")).join(every).encode("utf-8", "surrogateescape"))
    holds = [line for line in lines if not line.strip().startswith("#")]
    expect = "either" if bad or any("#" in line for line in lines) else "works" if holds else "refused"
    return f"a file of {every!r}"[:120], str(path), expect


def _encoded(rng: Rng, folder: Path) -> tuple[str, str, str]:
    encoding = rng.pick(ENCODINGS)
    text = rng.pick(("a fox\na dog\n", "ein süßer Fuchs\n", "лиса\n", "狐\n"))
    content = codecs.encode(text, encoding, "replace")
    path = folder / "x.txt"
    path.write_bytes(content)
    try:
        good = "\0" not in content.decode("utf-8")
    except UnicodeDecodeError:
        good = False
    return f"a file in {encoding}", str(path), "works" if good else "refused"


def _wrong_content(rng: Rng, folder: Path) -> tuple[str, str, str]:
    what = rng.pick(("nothing", "zeros", "UTF-16", "a program", "gzip", "a zip", "a PDF"))
    (folder / "x.txt").write_bytes(WRONG_CONTENTS[what])
    return f"a file of {what}", str(folder / "x.txt"), "refused"


def _no_file(rng: Rng, folder: Path) -> tuple[str, str, str]:
    what, path = no_file(folder, rng, "x.txt")
    if what == "zeros":  # is no name of a prompts file
        (path := folder / "x.txt").symlink_to("/dev/zero")
    return f"a prompts file that is {what}", str(path), "refused"


def _long(rng: Rng, folder: Path) -> tuple[str, str, str]:
    size = rng.pick((20_000, 9 * 2**20, 40 * 2**20))
    (folder / "x.txt").write_text("x" * size)
    return f"a line of {size} letters", str(folder / "x.txt"), "refused"


def _many(rng: Rng, folder: Path) -> tuple[str, str, str]:
    (folder / "x.txt").write_text("a fox\n" * 100_001 + "".join(f"fox {i}\n" for i in range(100_001)))
    return "a file of 200,000 prompts, of which 100,002 differ", str(folder / "x.txt"), "either"
