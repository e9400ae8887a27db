"""Why a clip is not used."""

from __future__ import annotations


class ClipError(Exception):
    """A clip cannot be used. `reason` is one of a few short phrases, to count by."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
