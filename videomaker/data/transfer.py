"""`python transfer.py get URL NAME TARGET` or `head URL NAME`: one request of obstore's, in a process of its own.

A loader's workers are forks, and obstore's threads do not come along: a request would wait in them for ever. Imports
nothing of the project, so that it starts at once. The answer is a line of JSON with "size" and "version", or "error".
"""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ClientConfig, RetryConfig


def main(verb: str, url: str, name: str, retries: str, target: str = "") -> dict:
    """Does one request; returns what it found.

    Args:
        verb: "get" writes the object to `target`, "head" looks whether it is there.
        url: of the folder.
        name: of the object in it.
        retries: how often a request that fails on the way is repeated.
        target: a file.
    """
    import obstore
    from obstore.store import from_url

    retry: RetryConfig = {"max_retries": int(retries), "retry_timeout": timedelta(seconds=60)}
    # The time-out is of a whole request, and a shard may be gigabytes.
    options: ClientConfig = {
        "allow_http": True, "connect_timeout": timedelta(seconds=20), "timeout": timedelta(hours=2),
    }  # fmt: skip
    try:
        store = from_url(url, client_options=options, retry_config=retry)
        if verb == "head":
            return _about(obstore.head(store, name))
        found = obstore.get(store, name)
        with Path(target).open("wb") as file:
            written = sum(file.write(chunk) for chunk in found.stream())
    except (OSError, ValueError, obstore.exceptions.BaseError) as error:
        return {"error": str(error).strip().partition("\n")[0]}
    about = _about(found.meta)
    return about if written == about["size"] else {"error": f"it ended after {written} of {about['size']} bytes"}


def _about(meta: ObjectMeta) -> dict:
    """An object's size, and what is another when it has been written again."""
    return {"size": meta["size"], "version": meta["e_tag"] or f"{meta['size']} {meta['last_modified']}"}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
