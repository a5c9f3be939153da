"""The errors: texts, kinship, and that each survives a pickle."""

from __future__ import annotations

import copy
import pickle

import pytest

import scheduler
from scheduler import (
    DeadlineExceeded,
    ErrRateLimited,
    JobFailed,
    QuotaExceeded,
    Retry,
    SchedulerClosed,
    SchedulerError,
    UpstreamError,
)
from scheduler.core.policy import Reason
from scheduler.errors import seconds_text

ERRORS: list[tuple[SchedulerError, str]] = [
    (ErrRateLimited("acme", "strict", 0.5), "tenant 'acme' is rate limited: retry after 0.5s"),
    (ErrRateLimited("acme", Reason.STRICT, 1.0), "tenant 'acme' is rate limited: retry after 1s"),
    (
        ErrRateLimited("acme", Reason.QUEUE_FULL, 1 / 3),
        "tenant 'acme' is rate limited: retry after 0.333333333s (queue_full)",
    ),
    (
        ErrRateLimited(tenant="acme", reason="max_wait", retry_after=60.0),
        "tenant 'acme' is rate limited: retry after 60s (max_wait)",
    ),
    (QuotaExceeded("acme", "requests", 9, 5), "tenant 'acme': cost 9 can never fit requests of burst 5"),
    (
        QuotaExceeded(tenant="acme", limit="input_tokens", cost=9, burst=5),
        "tenant 'acme': cost 9 can never fit input_tokens of burst 5",
    ),
    (DeadlineExceeded("acme", "timeout", 2.5), "tenant 'acme': timeout of 2.5s passed"),
    (
        DeadlineExceeded(tenant="acme", which="run_timeout", seconds=600.0),
        "tenant 'acme': run_timeout of 600s passed",
    ),
    (JobFailed("acme", "overloaded", 5), "tenant 'acme': failed after 5 attempts: overloaded"),
    (JobFailed("acme", "OSError", 1), "tenant 'acme': failed after 1 attempt: OSError"),
    (JobFailed(tenant="acme", kind="x", attempts=0), "tenant 'acme': failed after 0 attempts: x"),
    (UpstreamError("broken_stream"), "upstream: broken_stream"),
    (
        UpstreamError("overloaded", 529, error_type="overloaded_error", request_id="req_1", retry_after=3.0),
        "upstream: overloaded (status 529, overloaded_error, request req_1)",
    ),
    (SchedulerClosed("the scheduler is closed"), "the scheduler is closed"),
    (Retry(2.5, pause_gate=True, refused=True), "2.5"),
]
ids = [f"{type(error).__name__}{number}" for number, (error, _) in enumerate(ERRORS)]


@pytest.mark.parametrize(("error", "text"), ERRORS, ids=ids)
def test_its_text_says_who_what_and_how_long(error: SchedulerError, text: str) -> None:
    """One line, for a person."""
    assert str(error) == text
    assert "\n" not in repr(error)


@pytest.mark.parametrize(("error", "text"), ERRORS, ids=ids)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_it_survives_a_pickle(error: SchedulerError, text: str, protocol: int) -> None:
    """Type, attributes, text and notes, however it was made and whatever the protocol."""
    noted = copy.copy(error)
    noted.add_note("seen by worker 3")
    for original in (error, noted):
        twin = pickle.loads(pickle.dumps(original, protocol))
        assert type(twin) is type(original)
        assert str(twin) == text
        assert twin.args == original.args
        assert vars(twin) == vars(original)


@pytest.mark.parametrize(("error", "text"), ERRORS, ids=ids)
def test_one_class_catches_them_all(error: SchedulerError, text: str) -> None:
    """`SchedulerError`, which is an ordinary exception."""
    with pytest.raises(SchedulerError):
        raise error
    assert isinstance(error, Exception)


def test_some_are_also_what_python_calls_them() -> None:
    """A cost that never fits is a ValueError, a passed deadline a TimeoutError."""
    assert issubclass(QuotaExceeded, ValueError)
    assert issubclass(DeadlineExceeded, TimeoutError)
    assert not issubclass(ErrRateLimited, (ValueError, TimeoutError))


def test_a_subclass_of_the_user_s_own_survives_too() -> None:
    """Even with another signature."""
    twin = pickle.loads(pickle.dumps(TooBusy("acme", 3)))
    assert (twin.tenant, twin.retry_after, twin.rank) == ("acme", 1.0, 3)


class TooBusy(ErrRateLimited):
    """A user's own."""

    def __init__(self, tenant: str, rank: int) -> None:
        super().__init__(tenant, "strict", 1.0)
        self.rank = rank


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.5, "0.5s"),
        (1.0, "1s"),
        (1e-9, "0.000000001s"),
        (1 / 3, "0.333333333s"),
        (100.0, "100s"),
        (86400, "86400s"),
    ],
)
def test_seconds_are_written_short(seconds: float, text: str) -> None:
    """As many decimals as there are, at most nine."""
    assert seconds_text(seconds) == text


def test_every_error_is_public() -> None:
    """Whoever must catch it can import it."""
    named = {
        name
        for name, value in vars(scheduler).items()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    assert {type(error).__name__ for error, _ in ERRORS} | {"SchedulerError"} == named
    assert named <= set(scheduler.__all__)
