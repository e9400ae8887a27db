"""Refusals: one exception that becomes `{"error": {message, type, param, code}}`."""

from __future__ import annotations

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
MAX_RETRY_AFTER = 120  # seconds; the official client gives up at once on more


class ApiError(Exception):
    """A request that is refused.

    Args:
        status: of HTTP.
        message: for people: the value and the remedy.
        param: the parameter at fault.
        code: for programs.
        retry_after: seconds after which to try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        *,
        retry_after: float | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after = retry_after

    def body(self) -> dict[str, dict[str, str | None]]:
        """The answer's JSON."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """The answer's own headers."""
        if self.retry_after is None:
            return {}
        return {"retry-after": str(max(1, min(MAX_RETRY_AFTER, round(self.retry_after))))}


def not_found(id: str) -> ApiError:
    """The same for what never was and for what is another's."""
    return ApiError(404, f"there is no video {id[:64]!r}", code="video_not_found")
