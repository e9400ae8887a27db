"""What a case of the fuzz is, and the small words that its generators share."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Expect = Literal["refused", "works", "either"]


@dataclass(frozen=True)
class Case:
    """One input, and what may become of it.

    Args:
        what: the input in words, for the report.
        run: words of a `videomaker` command line (`train` first is the training's), or a function to call.
        expect: `"refused"` in one line, `"works"`, or `"either"`: where nobody can say which of the two is right.
        results: patterns of names that may appear in the case's folder.
    """

    what: str
    run: list[str] | Callable[[], Any]
    expect: Expect = "either"
    results: tuple[str, ...] = field(default=("out*", "outputs/*"))


class Rng(random.Random):
    """Random draws of a case, the same for the same name."""

    def pick(self, choices: Any) -> Any:
        """One of a sequence, or of the keys of a mapping."""
        return self.choice(list(choices))

    def bytes_between(self, low: int, high: int) -> bytes:
        """Random bytes, of a random number."""
        return self.randbytes(self.randint(low, high))


# No JSON value of a record, a manifest or a configuration means any of these, whatever its type.
NEVER: tuple[Any, ...] = ({}, {"a": 1}, [[]], float("nan"), float("inf"), float("-inf"), 1e300, -(10**30))
WRONG: dict[type, tuple[Any, ...]] = {
    str: (5, 1.5, True, None, [], ["x"], *NEVER),
    int: ("4", "x", "", 1.5, True, None, [], [1], *NEVER),
    float: ("4", "x", "", True, None, [], *NEVER),
    bool: ("true", 2, None, [], *NEVER),
    dict: ("x", 5, None, [], [1], True),
    list: ("x", 5, None, {}, True),
    type(None): (5, True, *NEVER),
}
# Names that a file may bear, and that programs get wrong.
FILE_NAMES = (
    "plain", "two words", "12:30", "pipe:0", "file:x", "a%d", "a%03d", "100%", "ünïcode", "猫", "😀", "a\nb", "a\tb",
    "'quoted'", '"double"', "$HOME", "`id`", "a;b", "a&b", "a|b", "*", "?", "[a]", "{a,b}", "#1", "~", "\\", "..a",
    "-dash", "--out", "con", "nul", "a,b", "a=b", "@x", "é", "e\u0301", "\u202eabc", "\u200b", "a\u2028b", "\udcff",
)  # fmt: skip


def flipped(content: bytes, rng: Rng, most: int = 16) -> bytes:
    """Some bytes changed."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, most)):
        changed[rng.randrange(len(changed))] ^= rng.randint(1, 255)
    return bytes(changed)


def truncated(content: bytes, rng: Rng, most: float = 0.7) -> bytes:
    """The beginning alone."""
    return content[: int(len(content) * rng.uniform(0.05, most))]


def no_file(folder: Path, rng: Rng, name: str) -> tuple[str, Path]:
    """What lies where a file is wanted and is none: the words for it, and the path."""
    import os

    path, what = (
        folder / name,
        rng.pick(("missing", "a folder", "a pipe", "a loop", "a dangling link", "zeros", "through a file")),
    )
    if what == "a folder":
        path.mkdir()
    elif what == "a pipe":
        os.mkfifo(path)
    elif what == "a loop":
        path.symlink_to(path)
    elif what == "a dangling link":
        path.symlink_to(folder / "gone")
    elif what == "zeros":
        path = Path("/dev/zero")
    elif what == "through a file":
        (folder / "file").write_text("x")
        path = folder / "file" / name
    return what, path


# What lies in a file of any kind by mistake.
WRONG_CONTENTS: dict[str, bytes] = {
    "nothing": b"",
    "zeros": bytes(4096),
    "text": b"hello, this is a text\n" * 20,
    "a web page": b"<!DOCTYPE html><html><head><title>404 Not Found</title></head></html>",
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123\n",
    "a PDF": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<<>>\nendobj\n",
    "a drawing": b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"></svg>',
    "an EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n",
    "a zip": b"PK\x05\x06" + bytes(18),
    "a program": b"\x7fELF\x02\x01\x01" + bytes(200),
    "gzip": b"\x1f\x8b\x08\x00" + bytes(30),
    "JSON": b'{"a": [1, 2, 3]}',
    "UTF-16": "a fox\n".encode("utf-16"),
    "a pickle": b"cos\nsystem\n(S'true'\ntR.",
}
