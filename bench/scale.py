"""Scaling out, as commands; prints one line of JSON at the end and keeps it with `--output`.

python bench/scale.py kills     jobs on PostgreSQL while workers are killed, the database restarts, a server dies
python bench/scale.py rates     claims and submits a second against the number of processes, on both databases
python bench/scale.py capacity  GPUs for a load, simulated; with --check against a run with the fake renderer

PostgreSQL comes with `pip install -e '.[scale-test]'`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from pathlib import Path

from serve import header

KINDS = {"kills": "scale_kills", "rates": "scale_rates", "capacity": "capacity"}


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 1 when a promise was not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--output", type=Path, help="JSON file to write; rates: a picture beside it")
    parser.add_argument("--jobs", type=int, default=10_000, help="kills: how many")
    parser.add_argument("--workers", type=int, default=8, help="kills: processes; rates: the most")
    parser.add_argument("--kill-every", type=float, default=5.0, help="kills: seconds between two kills")
    parser.add_argument("--pgbouncer", action="store_true", help="kills: all by way of four connections that it shares")
    parser.add_argument("--restarts", type=int, default=2, help="kills: of the database, spread over the jobs")
    parser.add_argument("--seconds", type=float, default=5.0, help="rates: of each measurement")
    parser.add_argument("--per-hour", type=float, default=1000.0, help="capacity: videos that come in")
    parser.add_argument("--video-seconds", type=float, default=20.0, help="capacity: of a GPU, for a video")
    parser.add_argument("--p95", type=float, default=60.0, help="capacity: seconds that 95 of 100 may wait at most")
    parser.add_argument("--check", action="store_true", help="capacity: compare with a run on this machine")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    before = header()
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
    result = getattr(importlib.import_module(KINDS[options.kind]), options.kind)(options)
    load_after = [round(value, 2) for value in os.getloadavg()]
    line = json.dumps({"kind": options.kind, **before, "load_after": load_after, **result})
    if options.output:
        options.output.write_text(line + "\n", encoding="utf-8")
    print(line)
    return 0 if result.get("kept", True) else 1


if __name__ == "__main__":
    sys.exit(main())
