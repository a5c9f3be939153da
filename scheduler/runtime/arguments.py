"""Arguments, checked at the edge: a clear error names argument and value, and nothing is half done."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from scheduler.core.policy import Policy
from scheduler.core.quota import NS, Quota, duration, instance, nanoseconds, plain_text, positive, whole

T = TypeVar("T", Quota, Policy)

MAX_TENANT = 512
"""Characters in a tenant's name."""

MAX_NAME = 512
"""Characters in the name of a session or a worker, and in a key."""


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
    """A tenant is a string of 1 to 512 characters, without NUL."""
    if tenant.__class__ is str and 0 < len(tenant) <= MAX_TENANT and tenant.isprintable():
        return tenant  # as nearly all are
    if not isinstance(tenant, str):
        raise TypeError(f"tenant: must be a string, got {type(tenant).__name__}")
    if not tenant:
        raise ValueError("tenant: must not be empty, got ''")
    if len(tenant) > MAX_TENANT:
        raise ValueError(f"tenant: must have at most {MAX_TENANT} characters, got {len(tenant)}")
    return plain_text("tenant", tenant)


def check_name(argument: str, name: str) -> str:
    """The name of a session or a worker, or a key, is a string of 1 to 512 characters, without NUL."""
    if not 0 < len(instance(argument, name, str)) <= MAX_NAME:
        raise ValueError(f"{argument}: must have 1 to {MAX_NAME} characters, got {len(name)}")
    return plain_text(argument, name)


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
        text = prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False, allow_nan=False)
        return len(text.encode())
    except (TypeError, ValueError, RecursionError):
        return None


def check_timeout(timeout: float) -> int:
    """A timeout is seconds above 0; returned in nanoseconds."""
    return duration("timeout", timeout)


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
