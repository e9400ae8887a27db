"""A Ray cluster of one machine, for tests."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

CPUS = 8  # as Ray counts them: what may run at once, whatever the machine has
TRIES = 3


@contextmanager
def local_ray() -> Iterator[str]:
    """Starts it, yields its address, and ends it. Its own patience, of half a minute, is short for a busy machine."""
    import ray

    with tempfile.TemporaryDirectory(prefix="vm-ray-", ignore_cleanup_errors=True) as folder, _environment():
        for left in reversed(range(TRIES)):
            try:
                ray.init(
                    "local", num_cpus=CPUS, include_dashboard=False, object_store_memory=80 * 2**20, _temp_dir=folder,
                    log_to_driver=False, configure_logging=False,
                )  # fmt: skip
                break
            except Exception as error:  # of its own start, before anything of ours
                ray.shutdown()
                if not left:
                    pytest.skip(f"Ray does not start here: {str(error)[:200]}")
        try:
            yield ray.get_runtime_context().gcs_address
        finally:
            ray.shutdown()


@contextmanager
def _environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_raylet_start_wait_time_s", "90")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))  # or one is left in the user's home
        yield
