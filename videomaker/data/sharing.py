"""Work that several processes share without a word to one another."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from videomaker.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """One of `count` equal parts of the work, counted from 1."""

    number: int = 1
    count: int = 1

    def of(self, parts: Sequence[T]) -> list[T]:
        """This shard's parts."""
        return list(parts[self.number - 1 :: self.count])


WHOLE = Shard()


def parse_shard(text: str) -> Shard:
    """A shard from `"i/n"`, counted from 1.

    Raises:
        InputError: something else.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(f"shard {text!r} is not understood: give i/n with i from 1 to n, such as 2/8")
    return Shard(int(match[1]), int(match[2]))
