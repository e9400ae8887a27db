"""The server's promises and figures, each a command; prints one line of JSON at the end and keeps it with `--output`.

python bench/serve.py queue      10,000 jobs, workers killed all the while: none lost, none with two results
python bench/serve.py restarts   kill -9 of the whole server at 20 random moments: every accepted job ends once
python bench/serve.py hostile    1,000 hostile requests: no 5xx, no file left, nobody else's job seen
python bench/serve.py submit     p99 of accepting 512-pixel pictures at 50 a second
python bench/serve.py overhead   seconds per video through the server against `jobs.render`, in turns
python bench/serve.py ready      seconds from the start until a worker is warm
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

KINDS = {
    "queue": "serve_kills", "restarts": "serve_kills", "hostile": "serve_hostile",
    "submit": "serve_load", "overhead": "serve_load", "ready": "serve_load",
}  # fmt: skip
PACKAGES = ("torch", "fastapi", "uvicorn", "sqlalchemy", "obstore")


def header() -> dict[str, Any]:
    """Where the figures were taken: machine, load, versions, commit."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip(),
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "load_before": [round(value, 2) for value in os.getloadavg()],
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
    }


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 1 when a promise was not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--jobs", type=int, default=10_000, help="queue: how many")
    parser.add_argument("--workers", type=int, default=3, help="queue: processes")
    parser.add_argument("--kill-every", type=float, default=5.0, help="queue: seconds between two kills")
    parser.add_argument("--times", type=int, default=20, help="restarts: kills; ready: starts")
    parser.add_argument("--requests", type=int, default=1000, help="hostile: how many")
    parser.add_argument("--rate", type=float, default=50.0, help="submit: requests a second")
    parser.add_argument("--seconds", type=float, default=20.0, help="submit: how long")
    parser.add_argument("--videos", type=int, default=12, help="overhead: in each turn")
    parser.add_argument("--turns", type=int, default=9, help="overhead: of each kind, each in processes of its own")
    parser.add_argument("--compile", action="store_true", help="ready: compiled, without and with saved artifacts")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    before = header()
    module = importlib.import_module(KINDS[options.kind])
    result = getattr(module, {"submit": "submit_rate"}.get(options.kind, options.kind))(options)
    load_after = [round(value, 2) for value in os.getloadavg()]
    report = {"kind": options.kind, **before, "load_after": load_after, **result}
    line = json.dumps(report)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(line + "\n", encoding="utf-8")
    print(line)
    return 0 if result.get("kept", True) else 1


if __name__ == "__main__":
    sys.exit(main())
