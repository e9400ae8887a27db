"""OpenTelemetry traces: off by default, and nothing is imported then."""

from __future__ import annotations


def current_traceparent() -> str | None:
    """The trace that is going on, as W3C writes it, to be carried to a worker; None without one."""
    return None
