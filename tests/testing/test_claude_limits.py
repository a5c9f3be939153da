"""The simulated limits, as arithmetic: time is an argument."""

from hypothesis import given
from hypothesis import strategies as st

from scheduler.testing import Limits
from scheduler.testing.claude.limits import MINUTE_NS, Bucket, Level, Limiter

SECOND_NS = 1_000_000_000


def test_a_full_bucket_gives_a_whole_minute_at_once_and_then_one_by_one() -> None:
    limiter = Limiter(Limits(requests_per_minute=60), 0)
    assert [limiter.admit(0, 0) for _ in range(60)] == [None] * 60
    refusal = limiter.admit(0, 0)
    assert refusal is not None
    assert (refusal.name, refusal.limit, refusal.wait_ns) == ("requests", 60, SECOND_NS)
    assert limiter.admit(SECOND_NS - 1, 0) is not None
    assert limiter.admit(SECOND_NS, 0) is None


def test_a_burst_of_one_second_models_a_limit_enforced_per_second() -> None:
    limiter = Limiter(Limits(requests_per_minute=60, burst_s=1), 0)
    assert limiter.admit(0, 0) is None
    assert limiter.admit(0, 0) is not None
    assert limiter.admit(SECOND_NS, 0) is None


def test_the_smallest_bucket_holds_one_permit() -> None:
    limiter = Limiter(Limits(requests_per_minute=6, burst_s=1), 0)
    assert limiter.admit(0, 0) is None
    refusal = limiter.admit(0, 0)
    assert refusal is not None
    assert refusal.wait_ns == 10 * SECOND_NS


def test_a_refused_request_is_not_charged_unless_asked() -> None:
    for charged, wait_ns in ((False, SECOND_NS), (True, 5 * SECOND_NS)):
        limiter = Limiter(Limits(requests_per_minute=60, burst_s=1, charge_refused=charged), 0)
        refusals = [limiter.admit(0, 0) for _ in range(5)]
        assert refusals[-1] is not None
        assert refusals[-1].wait_ns == wait_ns


def test_who_waits_as_long_as_it_is_told_gets_in_though_refusals_are_charged() -> None:
    limits = Limits(requests_per_minute=60, input_tokens_per_minute=600, burst_s=1, charge_refused=True)
    limiter, now_ns = Limiter(limits, 0), 0
    for _ in range(5):
        assert limiter.admit(now_ns, 10) is None
        assert limiter.admit(now_ns, 10) is not None
        refusal = limiter.admit(now_ns, 10)
        assert refusal is not None
        assert (refusal.name, refusal.wait_ns) == ("requests", 3 * SECOND_NS)
        now_ns += refusal.wait_ns


def test_a_refusal_for_its_input_is_charged_as_a_request_that_is_then_missing() -> None:
    limits = Limits(requests_per_minute=6, input_tokens_per_minute=60, burst_s=10, charge_refused=True)
    limiter = Limiter(limits, 0)
    refusal = limiter.admit(0, 11)
    assert refusal is not None
    assert (refusal.name, refusal.wait_ns) == ("requests", 10 * SECOND_NS)


def test_input_must_fit_as_a_whole() -> None:
    limiter = Limiter(Limits(input_tokens_per_minute=600), 0)
    assert limiter.admit(0, 550) is None
    refusal = limiter.admit(0, 60)
    assert refusal is not None
    assert (refusal.name, refusal.wait_ns) == ("input-tokens", SECOND_NS)
    assert limiter.admit(0, 50) is None


def test_output_may_go_below_zero_and_then_refuses_until_it_is_above() -> None:
    limiter = Limiter(Limits(output_tokens_per_minute=60), 0)
    assert limiter.admit(0, 0) is None
    limiter.charge_output(0, 62)
    refusal = limiter.admit(0, 0)
    assert refusal is not None
    assert refusal.name == "output-tokens"
    assert 2 * SECOND_NS < refusal.wait_ns <= 2 * SECOND_NS + 1
    assert limiter.admit(2 * SECOND_NS, 0) is not None
    assert limiter.admit(refusal.wait_ns, 0) is None


def test_the_worst_limit_is_named() -> None:
    limiter = Limiter(Limits(requests_per_minute=60, input_tokens_per_minute=60, burst_s=1), 0)
    assert limiter.admit(0, 1) is None
    refusal = limiter.admit(0, 30)
    assert refusal is not None
    assert (refusal.name, refusal.wait_ns) == ("input-tokens", 30 * SECOND_NS)


def test_the_estimate_is_corrected_and_never_above_full() -> None:
    limiter = Limiter(Limits(input_tokens_per_minute=1000), 0)
    assert limiter.admit(0, 900) is None
    limiter.correct_input(0, 900, 100)
    assert limiter.admit(0, 900) is None
    limiter.correct_input(0, 900, 0)
    limiter.correct_input(0, 900, 0)
    assert next(limiter.levels(0)).remaining == 1000


def test_a_workspace_limit_bounds_input_and_output_together() -> None:
    limiter = Limiter(Limits(workspace_tokens_per_minute=600), 0)
    assert limiter.admit(0, 500) is None
    limiter.charge_output(0, 100)
    refusal = limiter.admit(0, 10)
    assert refusal is not None
    assert (refusal.name, refusal.wait_ns) == ("tokens", SECOND_NS)


def test_without_limits_everything_is_admitted_and_no_level_is_told() -> None:
    limiter = Limiter(Limits(), 0)
    assert [limiter.admit(0, 10**9) for _ in range(100)] == [None] * 100
    assert list(limiter.levels(0)) == []


def test_tokens_are_the_sum_of_input_and_output_without_a_workspace_limit() -> None:
    limits = Limits(requests_per_minute=60, input_tokens_per_minute=80_000, output_tokens_per_minute=16_000)
    levels = {level.name: level for level in Limiter(limits, 0).levels(0)}
    assert levels["tokens"] == Level("tokens", 96_000, 96_000, 0)
    assert list(levels) == ["requests", "input-tokens", "output-tokens", "tokens"]


def test_the_workspace_limit_is_told_as_tokens_when_there_is_one() -> None:
    limits = Limits(input_tokens_per_minute=80_000, workspace_tokens_per_minute=5_000)
    levels = {level.name: level for level in Limiter(limits, 0).levels(0)}
    assert levels["tokens"].limit == 5_000


def test_only_large_token_limits_are_rounded() -> None:
    small = Limiter(Limits(input_tokens_per_minute=9_999, requests_per_minute=20_000), 0)
    large = Limiter(Limits(input_tokens_per_minute=10_000), 0)
    for limiter in (small, large):
        assert limiter.admit(0, 1_400) is None
    assert [level.remaining for level in small.levels(0)] == [19_999, 8_599, 8_599]
    assert next(large.levels(0)).remaining == 9_000


def test_small_buckets_of_large_limits_are_not_rounded() -> None:
    limits = Limits(input_tokens_per_minute=30_000, output_tokens_per_minute=12_000, burst_s=1)
    limiter = Limiter(limits, 0)
    assert limiter.admit(0, 100) is None
    assert [level.remaining for level in limiter.levels(0)] == [400, 200, 600]


def test_what_remains_is_never_rounded_above_what_the_bucket_holds() -> None:
    limiter = Limiter(Limits(input_tokens_per_minute=10_600), 0)
    assert limiter.admit(0, 50) is None
    assert [level.remaining for level in limiter.levels(0)] == [10_600, 10_600]


def test_reset_is_the_time_to_full() -> None:
    limiter = Limiter(Limits(requests_per_minute=60), 0)
    for _ in range(7):
        limiter.admit(0, 0)
    assert next(limiter.levels(0)).full_in_ns == 7 * SECOND_NS
    assert next(limiter.levels(3 * SECOND_NS)).full_in_ns == 4 * SECOND_NS


def test_a_time_in_the_past_changes_nothing() -> None:
    bucket = Bucket(60, 1, 10 * SECOND_NS)
    bucket.take(1)
    bucket.refill(5 * SECOND_NS)
    assert bucket.wait_ns(1) == SECOND_NS


@given(
    limit=st.integers(1, 100_000),
    burst_s=st.sampled_from([0.5, 1.0, 7.0, 60.0]),
    steps=st.lists(st.integers(0, 3 * SECOND_NS), max_size=60),
)
def test_no_interval_admits_more_than_burst_and_refill(limit: int, burst_s: float, steps: list[int]) -> None:
    limiter = Limiter(Limits(requests_per_minute=limit, burst_s=burst_s), 0)
    admitted: list[int] = []
    now_ns = 0
    for step in steps:
        now_ns += step
        admitted += [now_ns for _ in range(5) if limiter.admit(now_ns, 0) is None]
    capacity = max(1, limit * burst_s / 60)
    for first, start in enumerate(admitted):
        for last in range(first, len(admitted)):
            allowed = capacity + limit * (admitted[last] - start) / MINUTE_NS
            assert last - first + 1 <= allowed + 1e-9


@given(limit=st.integers(50, 100_000), taken=st.integers(1, 200), need=st.integers(0, 50))
def test_the_advertised_wait_is_exact(limit: int, taken: int, need: int) -> None:
    bucket = Bucket(limit, 60, 0)
    bucket.take(taken + limit)
    wait_ns = bucket.wait_ns(need)
    bucket.refill(wait_ns - 1)
    assert bucket.wait_ns(need) == 1
    bucket.refill(wait_ns)
    assert bucket.wait_ns(need) == 0


def test_twenty_thousand_permits_leave_no_drift() -> None:
    limiter = Limiter(Limits(requests_per_minute=7), 0)
    assert [limiter.admit(0, 0) for _ in range(7)] == [None] * 7
    now_ns = 0
    for count in range(7, 20_000):
        refusal = limiter.admit(now_ns, 0)
        assert refusal is not None
        now_ns += refusal.wait_ns
        assert limiter.admit(now_ns, 0) is None
        # Exact: after the burst the n-th permit is due at n * minute / 7, rounded up to a nanosecond.
        assert now_ns == -(-(count - 6) * MINUTE_NS // 7)
