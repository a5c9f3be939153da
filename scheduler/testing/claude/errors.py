"""Anthropic's error envelope, and the exception that carries one to the edge."""

from __future__ import annotations

import json

Headers = list[tuple[str, str]]

ERROR_TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 402: "billing_error", 403: "permission_error",
    404: "not_found_error", 405: "invalid_request_error", 408: "timeout_error", 409: "conflict_error",
    413: "request_too_large", 422: "invalid_request_error", 429: "rate_limit_error", 500: "api_error",
    504: "timeout_error", 529: "overloaded_error",
}  # fmt: skip


class ApiError(Exception):
    """A request is answered with an error: status, envelope, headers, and the reason the oracle records."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        reason: str | None = None,
        error_code: str | None = None,
        headers: Headers | None = None,
    ) -> None:
        """Choose the envelope's type by status; `reason` is that type unless given."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.error_type = error_type(status)
        self.error_code = error_code
        self.reason = reason or self.error_type
        self.headers = headers or []


def error_type(status: int) -> str:
    """Return the `error.type` that goes with a status."""
    return ERROR_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")


def envelope(kind: str, message: str, request_id: str, error_code: str | None = None) -> bytes:
    """Write the body of an error, which is also the data of an SSE `error` event."""
    error: dict[str, object] = {"type": kind, "message": message}
    if error_code is not None:
        error["details"] = {"error_code": error_code}
    return json.dumps({"type": "error", "error": error, "request_id": request_id}).encode()
