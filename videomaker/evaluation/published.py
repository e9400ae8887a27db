"""What the paper printed (arXiv 2412.19645) and prompt sets of its kinds, held by the package; quoted only."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from videomaker.errors import InputError

FOLDER = Path(__file__).parent / "paper"
PROMPT_SETS = ("people", "people-2", "objects")
_COLUMNS = {"face_similarity": "face", "dynamic_degree": "dd"}  # the paper's words for what is shorter here


@cache
def _document() -> dict[str, Any]:
    return json.loads((FOLDER / "tables.json").read_text(encoding="utf-8"))


def table_names() -> list[str]:
    """Tables whose numbers are known."""
    return [name for name, table in _document()["tables"].items() if table.get("rows") and table.get("numbers", 1)]


def table(name: str) -> dict[str, Any]:
    """A table: `label`, `caption` and `rows`, each `{"method", "base", "metrics": {our name: value}}`.

    Raises:
        InputError: no table of that name has numbers.
    """
    if name not in table_names():
        raise InputError(f"the paper has no table {name!r} with numbers: choose from {', '.join(table_names())}")
    found = _document()["tables"][name]
    rows = [
        {
            "method": row["method"],
            "base": row["base"],
            "metrics": {_COLUMNS.get(column, column): row[column] for column in found["columns"]},
        }
        for row in found["rows"]
    ]
    source = f"{_document()['source']['title']}, arXiv {_document()['source']['arxiv']}"
    return {"name": name, "label": found["label"], "caption": found["caption"], "source": source, "rows": rows}


def prompt_set(name: str) -> Path:
    """The file of a prompt set of `PROMPT_SETS`."""
    return FOLDER / f"{name}.txt"
