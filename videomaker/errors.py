"""The one exception that means: the user's input is wrong; the checks of a number and the one line that rooms share."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

MAX_COUNT = 2**31


class InputError(ValueError):
    """Input that cannot be used. The message is one line: it names the value and the remedy.

    The command line prints the message and exits with code 2; library callers can catch it as a `ValueError`.
    """


def first_line(error: BaseException) -> str:
    """What another library's error says, in one line; where it says nothing, its kind."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def check_counts(*, least: int = 1, **counts: Any) -> None:
    """Refuses what is not a whole number from `least` and below `MAX_COUNT`."""
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise InputError(f"{name} is {value!r}; it must be a whole number")
        if not least <= value < MAX_COUNT:
            bound = f"at least {least}" if value < least else f"below {MAX_COUNT}"
            raise InputError(f"{name} is {value}; it must be {bound}")


def check_number(name: str, value: Any, *, low: float = -math.inf) -> None:
    """Refuses what is no finite number from `low` up."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or value < low:
        bound = "" if low == -math.inf else f" from {low:g}"
        raise InputError(f"{name} is {value!r}; it must be a finite number{bound}")
