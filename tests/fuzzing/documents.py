"""JSON documents with one value changed: where it lies, and whether the change can mean anything."""

from __future__ import annotations

import copy
import json
from typing import Any

from .case import WRONG, Rng

Path_ = tuple[str | int, ...]


def places(document: Any, path: Path_ = ()) -> list[Path_]:
    """The path of every value in a JSON document, containers included."""
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    found = [path] if path else []
    for key, value in items:
        found += places(value, (*path, key))
    return found


def value_at(document: Any, path: Path_) -> Any:
    """The value at a path."""
    for key in path:
        document = document[key]
    return document


def with_value(document: Any, path: Path_, value: Any) -> Any:
    """A copy with another value at a path."""
    changed = copy.deepcopy(document)
    value_at(changed, path[:-1])[path[-1]] = value
    return changed


def without(document: Any, path: Path_) -> Any:
    """A copy without what lies at a path."""
    changed = copy.deepcopy(document)
    del value_at(changed, path[:-1])[path[-1]]
    return changed


def wrong_value(document: Any, path: Path_, rng: Rng) -> Any:
    """A value of a kind that cannot stand at a path."""
    return rng.pick(WRONG[type(value_at(document, path))])


def damaged_text(text: str, rng: Rng) -> tuple[str, bytes]:
    """The document's text, broken as text; with the words for it."""
    content = text.encode()
    what = rng.pick(("cut short", "not UTF-8", "twice", "trailing comma", "deep", "a list", "a number", "empty", "NUL"))
    return what, {
        "cut short": content[: rng.randrange(1, len(content) - 2)],
        "not UTF-8": content.replace(b'"', b'"\xff', 1),
        "twice": content + content,
        "trailing comma": content.rstrip().rstrip(b"}") + b",}",
        "deep": b"[" * 100_000,
        "a list": b"[" + content + b"]",
        "a number": b"7",
        "empty": b"",
        "NUL": content.replace(b":", b":\0", 1),
    }[what]


def dump(document: Any) -> str:
    """As JSON; what is not a number in JSON is written as Python does."""
    return json.dumps(document)
