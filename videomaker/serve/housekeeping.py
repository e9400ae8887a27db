"""What has to be done now and then: leases of the dead, videos past their time, files that no row names."""

from __future__ import annotations

import threading
import time

import structlog

from .state import State

log = structlog.get_logger("videomaker.serve.housekeeping")
REAP_SECONDS = 2
EXPIRE_SECONDS = 30
SWEEP_SECONDS = 3600
ORPHAN_SECONDS = 3600  # a younger file may belong to a job that is being accepted


class Housekeeper:
    """A thread beside the API; several processes may each have one."""

    def __init__(self, state: State):
        self.state = state
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def stop(self) -> None:
        """Ends, after what it is doing."""
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        due = {self._reap: 0.0, self._expire: 0.0, self._sweep: time.monotonic() + 60}
        every = {self._reap: REAP_SECONDS, self._expire: EXPIRE_SECONDS, self._sweep: SWEEP_SECONDS}
        while not self._end.wait(0.5):
            for work, when in due.items():
                if time.monotonic() < when:
                    continue
                try:
                    work()
                except Exception as error:  # database or store away: the next round tries again
                    log.warning("housekeeping failed", work=work.__name__, error=str(error))
                    # Leases that ended while the database was away may be their workers' still.
                    due[self._reap] = time.monotonic() + self.state.queue.lease_seconds
                due[work] = max(due[work], time.monotonic() + every[work])

    def _reap(self) -> None:
        if count := self.state.queue.reap():
            self.state.process.leases_lost(count)
            log.warning("leases lost", jobs=count)

    def _expire(self) -> None:
        remove_expired(self.state)

    def _sweep(self) -> None:
        sweep_orphans(self.state)


def remove_expired(state: State) -> int:
    """Removes videos past their time, files first: after a crash in between, the row still says what to do."""
    ids = state.listing.expired()
    for id in ids:
        state.store.delete(f"videos/{id}")
        state.listing.remove(id)
    return len(ids)


def sweep_orphans(state: State, *, age: float = ORPHAN_SECONDS) -> int:
    """Removes files of jobs that have no row, left by a crash between the two: how many jobs."""
    limit = f"video_{int((time.time() - age) * 1000):012x}"  # ids begin with their time
    old = [id for id in state.store.children("videos") if id < limit]
    known = {id for start in range(0, len(old), 500) for id in state.listing.known(old[start : start + 500])}
    orphans = [id for id in old if id not in known]
    for id in orphans:
        state.store.delete(f"videos/{id}")
    return len(orphans)
