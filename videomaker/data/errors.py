"""Why a clip is not used."""

from __future__ import annotations


class ClipError(Exception):
    """A clip cannot be used. `reason` is one of a few short phrases, to count by."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


def unexpected(error: Exception) -> ClipError:
    """What a library raised on a clip's file: of damaged ones it may be anything; one must not cost the others."""
    return ClipError("broken", f"{type(error).__name__}: {error}")
