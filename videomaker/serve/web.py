"""uvicorn with the application, ended our way."""

from __future__ import annotations

import signal
import threading
from types import FrameType

import structlog
import uvicorn

from .app import create_app
from .state import State
from .supervisor import Supervisor

log = structlog.get_logger("videomaker.serve")
LAST_ANSWERS = 3  # seconds for answers under way after the workers have ended


class WebServer(uvicorn.Server):
    """Ends in order: first no new jobs, then the workers, then the answers that are left.

    Args:
        state: the services.
        supervisor: of the workers.
    """

    def __init__(self, state: State, supervisor: Supervisor):
        super().__init__(
            uvicorn.Config(
                create_app(state),
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=LAST_ANSWERS,
                h11_max_incomplete_event_size=64 * 1024,
            )
        )
        self.state, self.supervisor = state, supervisor

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal lets the workers finish; with a second one they give back what they make."""
        grace = 0.0 if self.state.draining else self.state.config.drain_seconds
        self.state.draining = True
        threading.Thread(target=self._drain, args=(grace,), name="drain", daemon=True).start()

    def _drain(self, grace: float) -> None:
        log.info("draining", seconds=grace)
        self.supervisor.stop(grace)
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Ends the server, too, when its workers cannot be started."""
        if self.supervisor.failed.is_set() and not self.state.draining:
            self.handle_exit(signal.SIGTERM, None)
        return await super().on_tick(counter)
