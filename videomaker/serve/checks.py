"""Safety checks that a team brings: a function for requests, one for finished frames. There is none by default."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from videomaker.errors import InputError

# (request, pictures or frames) -> why it is refused, or None. The request is what the record will hold; pictures are
# PIL images, frames an array [F, H, W, 3] of uint8.
Check = Callable[[dict[str, Any], Any], str | None]


def load_check(place: str | None) -> Check | None:
    """The function at `module:function`; None for None.

    Raises:
        InputError: there is none.
    """
    if place is None:
        return None
    module, _, name = place.partition(":")
    try:
        check = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"safety check {place!r} cannot be loaded: give module:function ({error})") from error
    if not callable(check):
        raise InputError(f"safety check {place!r} is not a function: give module:function")
    return check
