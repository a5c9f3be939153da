"""The HTTP edge: headers and errors that clients understand, and a middleware that queues per tenant.

Needs the extra ``waitline[http]``. What a client sees in each case: `docs/http.md`.
"""

from scheduler.http.answers import Answer, answer, exception_handler
from scheduler.http.headers import limit_headers, retry_after_seconds, retry_headers
from scheduler.http.middleware import WaitlineMiddleware

__all__ = [
    "Answer",
    "WaitlineMiddleware",
    "answer",
    "exception_handler",
    "limit_headers",
    "retry_after_seconds",
    "retry_headers",
]
