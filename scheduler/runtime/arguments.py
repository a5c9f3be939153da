"""Arguments, checked at the edge: a clear error names argument and value, and nothing is half done."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from scheduler.core.policy import Policy
from scheduler.core.quota import NS, Quota, instance, nanoseconds, positive, whole

T = TypeVar("T", Quota, Policy)

MAX_TENANT = 512
"""Characters in a tenant's name."""

MAX_SESSION = 512
"""Characters in the name of a session."""


class Bounds(NamedTuple):
    """What a scheduler allows at most: in one place, since an object of 30 attributes is a slow one."""

    max_attempts: int
    run_timeout: float
    max_prompt_bytes: int
    max_head_start: float

    @classmethod
    def of(
        cls, max_attempts: int, run_timeout: float, max_prompt_bytes: int, max_head_start: float
    ) -> Bounds:
        """The bounds, checked."""
        return cls(
            whole("max_attempts", max_attempts, 1),
            float(positive("run_timeout", run_timeout)),
            whole("max_prompt_bytes", max_prompt_bytes, 1),
            float(positive("max_head_start", max_head_start)),
        )


def check_tenant(tenant: str) -> str:
    """A tenant is a string of 1 to 512 characters."""
    if tenant.__class__ is str and 0 < len(tenant) <= MAX_TENANT:
        return tenant
    if not isinstance(tenant, str):
        raise TypeError(f"tenant: must be a string, got {type(tenant).__name__}")
    if not tenant:
        raise ValueError("tenant: must not be empty, got ''")
    if len(tenant) > MAX_TENANT:
        raise ValueError(f"tenant: must have at most {MAX_TENANT} characters, got {len(tenant)}")
    return tenant


def check_session(session: str) -> str:
    """The name of a session is a string of 1 to 512 characters."""
    if not instance("session", session, str):
        raise ValueError(f"session: must have 1 to {MAX_SESSION} characters, got ''")
    if len(session) > MAX_SESSION:
        raise ValueError(
            f"session: must have 1 to {MAX_SESSION} characters, got {len(session)}: {session[:20]!r}…"
        )
    return session


def check_prompt(prompt: Any, most: int) -> None:
    """A prompt is a string or a list of Messages-API content, not empty, of at most `most` bytes."""
    if prompt.__class__ is str and 0 < len(prompt) <= most and prompt.isascii():
        return
    if not isinstance(prompt, (str, list)):
        raise TypeError(f"prompt: must be a string or a list of content blocks, got {type(prompt).__name__}")
    if not prompt:
        raise ValueError("prompt: must not be empty")
    size = _encoded_size(prompt)
    # Raised out here, since the errors of an encoder carry the text that they could not encode.
    if size is None:
        raise TypeError("prompt: must be JSON content of valid Unicode, got something that is not")
    if size > most:
        raise ValueError(f"prompt: must have at most {most} bytes, got {size}")


def _encoded_size(prompt: str | list[Any]) -> int | None:
    """Bytes of a prompt as UTF-8, of a list as JSON; None if it cannot be written so."""
    try:
        return len((prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)).encode())
    except (TypeError, ValueError, RecursionError):
        return None


def check_timeout(timeout: float) -> int:
    """A timeout is seconds above 0; returned in nanoseconds."""
    length = nanoseconds("timeout", timeout)
    if length == 0:
        raise ValueError(f"timeout: must be above 0, got {timeout!r}")
    return length


def check_priority(priority: float, most: float) -> int:
    """A priority is a head start in seconds, from 0 to `most`; returned in nanoseconds."""
    length = nanoseconds("priority", priority)
    if length > most * NS:
        raise ValueError(f"priority: must be at most {most} seconds, got {priority!r}")
    return length


def chooser(name: str, given: Any, kind: type[T]) -> Callable[[str], T]:
    """Read a `kind`, a mapping by tenant, or a callable of the tenant, as a callable of the tenant."""
    if isinstance(given, kind):
        only: T = given
        return lambda _: only

    def look_up(tenant: str) -> T:
        try:
            found = given[tenant]
        except KeyError:
            raise ValueError(f"tenant: no entry in {name} for {tenant!r}") from None
        return found if isinstance(found, kind) else instance(f"{name}[{tenant!r}]", found, kind)

    def ask(tenant: str) -> T:
        return instance(f"{name}({tenant!r})", given(tenant), kind)

    if isinstance(given, Mapping):
        return look_up
    if callable(given):
        return ask
    raise TypeError(f"{name}: must be a {kind.__name__}, a mapping or a callable, got {given!r}")
