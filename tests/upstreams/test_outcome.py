"""Whether and when a failed attempt is repeated: bounded in time and in number, whatever upstream says."""

import hypothesis.strategies as st
from hypothesis import given

from scheduler import UpstreamError
from scheduler.upstreams.claude import Kind, outcome
from scheduler.upstreams.failures import BACKOFF_MAX_S, RETRY_AFTER_MAX_S, TRIES_MAX

errors = st.builds(
    UpstreamError,
    kind=st.sampled_from(Kind) | st.text(max_size=5),
    status=st.none() | st.sampled_from([200, 400, 409, 429, 500, 529]),
    retry_after=st.none() | st.floats(min_value=0, exclude_min=True, allow_nan=False),
)
draws = st.floats(min_value=0, max_value=1, exclude_max=True)


@given(error=errors, tries=st.integers(min_value=1, max_value=10_000), draw=draws, timeouts=st.booleans())
def test_every_wait_and_every_number_of_tries_is_bounded(
    error: UpstreamError, tries: int, draw: float, timeouts: bool
) -> None:
    retry = outcome(error, tries, lambda: draw, retry_timeouts=timeouts)
    if retry is None:
        return
    assert tries < TRIES_MAX
    assert 0 <= retry.after <= max(BACKOFF_MAX_S, RETRY_AFTER_MAX_S)
    assert error.retry_after is None or retry.after >= error.retry_after
    # Only what was refused before any work is free, and only what is free stops the others.
    assert not retry.refused or error.status in (429, 529)
    assert not retry.pause_gate or retry.refused


@given(draw=draws, tries=st.integers(min_value=1, max_value=TRIES_MAX - 1))
def test_an_overloaded_upstream_gets_full_jitter_under_a_doubling_bound(draw: float, tries: int) -> None:
    retry = outcome(UpstreamError(Kind.OVERLOADED, 529), tries, lambda: draw)
    assert retry is not None
    assert retry.after == draw * min(BACKOFF_MAX_S, 0.5 * 2 ** (tries - 1))
    assert retry.refused
    assert not retry.pause_gate


def test_kinds_are_plain_texts() -> None:
    assert f"{UpstreamError(Kind.BROKEN_STREAM)}" == "upstream: broken_stream"
    assert UpstreamError(Kind.OVERLOADED).kind == "overloaded"
