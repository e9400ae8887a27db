"""The process of a worker: `python -m videomaker.serve.child`, started by the supervisor, dying with it.

Its standard input is a pipe: first a line with the settings, then nothing until the parent is gone. Before it reads
that line it loads the libraries that a model needs, unless it is started with `--light`.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
from typing import Any

EXIT_INPUT = 2  # the settings cannot be used; starting again would not help
_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Runs a worker until SIGTERM or the parent's end: the exit status."""
    _die_with_parent()
    if "--light" not in sys.argv:
        from .loading import load_libraries

        load_libraries()
    line = sys.stdin.readline()
    if not line:
        return 0  # nobody wanted it
    threading.Thread(target=_wait_for_end, name="parent", daemon=True).start()
    return _work(json.loads(line))


def _work(order: dict[str, Any]) -> int:
    # Late: nothing slow is imported before the process knows how it ends with its parent.
    from videomaker.errors import InputError

    from .config import ServeConfig
    from .loading import load_renderer
    from .logs import configure_logs
    from .state import State
    from .tracing import configure_tracing
    from .worker import Worker

    config = ServeConfig.model_validate(order["config"])
    configure_logs(config)
    try:
        configure_tracing(config.telemetry)
        worker = Worker(State(config), load_renderer(config, order["device"]))
        graces = iter((config.drain_seconds,))  # told once more, it gives its batch back at the next step
        signal.signal(signal.SIGTERM, lambda *_: worker.stop(next(graces, 0.0)))
        worker.run()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return EXIT_INPUT
    return 0


def _die_with_parent() -> None:
    """Also when the parent is killed with -9: the kernel's signal on Linux, the end of the pipe everywhere."""
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal goes to the whole group; the parent decides
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _wait_for_end() -> None:
    while os.read(0, 1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
