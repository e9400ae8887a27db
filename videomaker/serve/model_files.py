"""Models that lie in an object store, copied once to this machine: `model = "s3://bucket/models/toys"`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import obstore
import structlog
from obstore.exceptions import BaseError

from videomaker.digests import sha256
from videomaker.errors import InputError, first_line
from videomaker.files import atomic_directory

from .config import ServeConfig
from .store import connect

log = structlog.get_logger("videomaker.serve")
FACTS = (".json", ".txt")  # what the interface reads of a model; weights are the workers'
CHUNK = 8 * 2**20
PATIENCE = 60  # seconds for which a request to the store is tried again


def localised(config: ServeConfig, *, facts_only: bool = False) -> ServeConfig:
    """The settings with folders of this machine in place of URLs, copied there if they are not there yet.

    A URL is taken to name the same model for ever: another version gets another name.

    Args:
        config: whose `data` folder holds the copies, and whose `files_options` say how stores are reached.
        facts_only: whether the weights stay where they are: for a server without workers.

    Raises:
        InputError: there is nothing at a URL, or its store does not answer.
    """
    if config.models:
        models = tuple(
            one.model_copy(update={**_named(one.name, one.model), "model": _local(config, one.model, facts_only)})
            for one in config.models
        )
        return config.model_copy(update={"models": models})
    if "://" not in config.model:
        return config
    return config.model_copy(update={"model_name": config.name, "model": _local(config, config.model, facts_only)})


def _named(name: str, url: str) -> dict[str, Any]:
    """The folder's name, which the copy has no more."""
    return {} if name or "://" not in url else {"name": Path(url).name}


def _local(config: ServeConfig, url: str, facts_only: bool) -> str:
    if "://" not in url:
        return url
    kind = "facts" if facts_only else "model"
    folder = config.data.absolute() / "models" / f"{Path(url).name}-{kind}-{sha256(url)[:16]}"
    if folder.is_dir():
        return str(folder)
    try:
        store = connect(url, dict(config.files_options), PATIENCE)
        paths = [entry["path"] for page in obstore.list(store) for entry in page]
        if "model_index.json" not in paths:
            raise InputError(f"model {url}: there is no model_index.json; give the folder of a model")
        with atomic_directory(folder) as temporary:
            for path in paths:
                if not facts_only or path.endswith(FACTS):
                    _fetch(store, path, temporary / path)
    except (BaseError, OSError) as error:
        raise InputError(f"model {url} cannot be fetched: {first_line(error)[:300]}") from error
    log.info("model fetched", url=url, files=len(paths), kind=kind)
    return str(folder)


def _fetch(store: Any, path: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        for chunk in obstore.get(store, path).stream(min_chunk_size=CHUNK):
            file.write(chunk)
