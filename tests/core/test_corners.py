"""Corners where a queue with two levels goes wrong first: each was, or could have been, a bug."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.account import SLOT_FLOOR
from scheduler.core.engine import Engine
from scheduler.core.entry import Entry, State
from scheduler.core.outlook import PAUSE_STEP
from scheduler.core.policy import Cause, Policy, Reason, Refusal
from scheduler.core.quota import NS, ONE, Cost, Quota, Rate, Usage
from tests.core.invariants import check
from tests.core.play import MS, PATIENT, START, Op, Play, engine, ops, rates, token_rates

STRICT = Policy.strict()
SILENT = {"policy": PATIENT, "session": None, "timeout": None, "head_start": 0}
TWO_GATES = {"x": Quota(), "y": Quota()}


def offer(one: Engine, now: int, tenant: str = "a", gate: str = "", **rare: object) -> Entry:
    """Offer a patient job of one request."""
    entry = Entry(PATIENT, ONE, **rare)
    one.offer(now, tenant, gate, entry)
    return entry


# --- two gates, one tenant bucket -----------------------------------------------------------------------


def test_law_1_a_permit_that_one_gate_took_is_gone_for_the_other() -> None:
    """A head that waits for its permits at one gate does not start with those that went through another."""
    play = Play(engine(Quota(Rate(1, burst=2)), TWO_GATES), after=check)
    play.do(Op("offer", gate="x", cost=Cost(2)))
    play.do(Op("offer", gate="x", cost=Cost(2)))  # waits until 2 s
    play.do(Op("offer", gate="y", gap=NS, head_start=10 * NS))  # goes before it, at 1 s
    play.drain()
    assert [(job, time - START) for job, time in play.grants] == [(0, 0), (2, NS), (1, 3 * NS)]
    assert play.jobs[1].delayed == {Cause.PRIORITY}


def test_law_2_a_large_job_at_one_gate_is_not_starved_by_small_ones_at_another() -> None:
    """A tenant's permits go to its oldest job first, at whatever gate it stands."""
    play = Play(engine(Quota(Rate(1, burst=5)), TWO_GATES), after=check)
    play.do(Op("offer", gate="x", cost=Cost(5)))
    play.do(Op("offer", gate="x", cost=Cost(5)))
    for _ in range(20):
        play.do(Op("offer", gate="y", gap=NS))
    play.drain()
    assert play.jobs[1].slot == play.jobs[1].promised == START + 5 * NS
    assert [job for job, _ in play.grants] == list(range(22))


def test_law_3_a_paused_gate_does_not_hold_up_the_other() -> None:
    """The permits that a head has and cannot use are free for the tenant's line at another gate."""
    play = Play(engine(Quota(Rate(1)), TWO_GATES), after=check)
    play.do(Op("pause", gate="x", delay=100 * NS))
    play.do(Op("offer", gate="x"))
    for _ in range(5):
        play.do(Op("offer", gate="y"))
    play.drain()
    assert [play.jobs[job].slot - START for job in range(1, 6)] == [n * NS for n in range(5)]
    assert play.jobs[0].slot == START + 100 * NS


@given(
    st.builds(Quota, rates, input_tokens=token_rates, output_tokens=token_rates),
    st.lists(
        ops(
            ("offer", "offer", "advance"), tenants=2, gates=("x", "y"), gap=st.integers(0, 50 * MS), **SILENT
        ),
        max_size=30,
    ),
)
def test_law_4_the_promise_counts_the_jobs_at_other_gates(quota: Quota, script: list[Op]) -> None:
    """With gates that do not bind, the error is 0 however a tenant's jobs are spread over them."""
    play = Play(engine(quota, TWO_GATES)).run(script).drain()
    for entry in play.jobs:
        if entry.state is State.ENDED:
            assert entry.slot == entry.promised
            assert not entry.delayed


def test_law_3_root_slots_go_round_between_gates() -> None:
    """A gate whose own jobs free every slot does not keep them from another gate's older job."""
    play = Play(engine(Quota(), {"x": Quota(concurrency=1), "y": Quota()}, max_running=1), after=check)
    play.do(Op("offer", gate="x"))
    play.do(Op("offer", gate="y", gap=1, tenant="b"))
    for _ in range(5):
        play.do(Op("offer", gate="x", gap=1))
    play.drain()
    assert [job for job, _ in play.grants] == [0, 1, 2, 3, 4, 5, 6]


# --- continuations --------------------------------------------------------------------------------------


def test_law_3_a_run_that_holds_the_last_slot_is_not_stuck_behind_a_head_that_waits_for_it() -> None:
    """Slots run out while a job with a head start stands before the run's next call: the call goes."""
    play = Play(engine(Quota(), {"": Quota(Rate(1), concurrency=2)}), after=check)
    play.do(Op("offer"))
    play.do(Op("offer", head_start=10 * NS))  # stands before the call below, while there is a slot
    play.do(Op("chain"))
    play.do(Op("offer", tenant="b", head_start=20 * NS))  # takes the last slot
    play.drain()
    assert sorted(job for job, _ in play.grants) == [0, 1, 2, 3]
    full = engine(Quota(), {"": Quota(concurrency=2)}, max_running=2)
    runs = [offer(full, START, "a"), offer(full, START, "b")]
    waiting = [offer(full, START, "a", head_start=NS), offer(full, START, "b", head_start=NS)]
    calls = [Entry(PATIENT, holder=run) for run in runs]
    for run, call in zip(runs, calls, strict=True):
        full.offer(START, run.owner.name, "", call)
    assert [call.state for call in calls] == [State.RUNNING] * 2
    assert [entry.state for entry in waiting] == [State.WAITING] * 2


def test_law_7_calls_that_need_no_slot_do_not_cost_others_their_place() -> None:
    """While slots are taken only calls pass; who waits for a slot keeps the start tag it has."""
    gates = {"": Quota(Rate(10), concurrency=1)}
    play = Play(engine(Quota(), gates), after=check)
    play.do(Op("offer", tenant="a"))
    play.do(Op("offer", tenant="b"))
    gate = play.engine.gates[""]
    for _ in range(5):
        play.do(Op("chain", gap=100 * MS))
    tag = gate.eligible.items[0][0]
    assert gate.fair.virtual <= tag
    play.do(Op("offer", tenant="b", head_start=NS))  # b's front changes, its claim does not
    assert gate.eligible.first() is not None
    assert gate.eligible.items[0][0] == tag
    play.drain()


def test_a_quote_of_a_call_leaves_no_trace() -> None:
    """Asking what a continuation could look forward to does not use up one of the run's keys."""
    one = engine(Quota(Rate(1)))
    run = offer(one, START)
    for _ in range(3):
        one.quote(START, "a", "", Entry(PATIENT, holder=run))
    assert run.calls == 0


def test_a_call_ignores_the_session_of_its_run() -> None:
    """A continuation that names its run's session does not wait for the run to end."""
    one = engine(Quota(Rate(1, burst=2)))
    run = offer(one, START, session="s")
    call = Entry(PATIENT, holder=run, session="s")
    one.offer(START, "a", "", call)
    assert call.state is State.RUNNING
    one.settle(START, call)
    one.settle(START, run)
    assert not one.sessions


# --- costs and clocks -----------------------------------------------------------------------------------


def test_law_1_a_request_costs_no_token() -> None:
    """Where tokens alone are limited, jobs that use none pass freely, and take nothing."""
    one = engine(Quota(input_tokens=Rate(1, burst=1)))
    assert all(offer(one, START).state is State.RUNNING for _ in range(10))
    tokens = Entry(PATIENT, Cost(1, 1))
    one.offer(START, "a", "", tokens)
    assert tokens.state is State.RUNNING
    late = Entry(PATIENT, Cost(1, 1))
    one.offer(START, "a", "", late)
    assert late.promised == START + NS
    assert offer(one, START).promised == START + NS


@pytest.mark.parametrize("start", [0, 1, 10**18])
def test_law_5_refusals_are_right_from_the_first_nanosecond(start: int) -> None:
    """A clock that starts at 0 is as good as any: nothing is taken for a caller refused before."""
    one = engine(Quota(Rate(1, per=60, burst=3)), {"": Quota(Rate(1))}, now=start)
    assert offer(one, start).state is State.RUNNING
    refusals = [one.offer(start, "a", "", Entry(STRICT)) for _ in range(3)]
    assert [(r.reason, r.retry_after) for r in refusals if r] == [(Reason.GATE, n * NS) for n in (1, 2, 60)]


def test_law_5_callers_refused_by_a_pause_come_back_as_their_buckets_allow() -> None:
    """The burst at the end of the pause, then one by one: when the queue would have started them."""
    one = engine(Quota(Rate(2, burst=3)))
    one.pause(START, "", START + 10 * NS)
    refusals = [one.offer(START, "a", "", Entry(STRICT)) for _ in range(5)]
    assert [r.reason for r in refusals if r] == [Reason.PAUSE] * 5
    late = [r.retry_after - 10 * NS for r in refusals if r]
    assert late == [0, PAUSE_STEP, 2 * PAUSE_STEP, NS // 2, NS]
    queued = engine(Quota(Rate(2, burst=3)))
    queued.pause(START, "", START + 10 * NS)
    expected = [queued.expected(START, offer(queued, START)).expected - START - 10 * NS for _ in range(5)]
    assert expected == [0, 0, 0, NS // 2, NS]


def test_law_5_a_busy_session_refuses_like_a_slot() -> None:
    """Strict, behind a running job of the same session: not before its mean holding time, never at once."""
    one = engine(Quota())
    offer(one, START, session="s")
    refusal = one.offer(START, "a", "", Entry(STRICT, session="s"))
    assert refusal == Refusal(Reason.SLOT, SLOT_FLOOR, None)


def test_law_5_who_stands_behind_others_at_a_gate_is_refused_by_the_gate() -> None:
    """A gate that has permits for a small job, and a large one in front: the reason is the gate, not 1 ns."""
    one = engine(Quota(), {"": Quota(Rate(1, burst=10))})
    for _ in range(2):
        one.offer(START, "a", "", Entry(PATIENT, Cost(6)))
    refusal = one.offer(START, "b", "", Entry(STRICT))
    assert refusal is not None
    assert refusal.reason is Reason.GATE
    assert refusal.retry_after >= 2 * NS


def test_law_5_a_deadline_that_is_past_is_refused_though_all_is_free() -> None:
    """Nothing starts for a result that nobody can want any more."""
    for policy in (PATIENT, STRICT):
        refusal = engine().offer(START, "a", "", Entry(policy, expires=START))
        assert refusal is not None
        assert refusal.reason is Reason.DEADLINE
        assert refusal.retry_after > 0


@given(
    st.builds(Quota, rates, input_tokens=token_rates, output_tokens=token_rates),
    st.lists(st.builds(Cost, st.just(1), st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=30),
)
def test_law_5_several_buckets_refuse_with_the_times_of_the_queue(quota: Quota, costs: list[Cost]) -> None:
    """From the first refusal on, callers with any costs get what the queue would have promised them.

    Where the queue would have started two in one nanosecond, the second is told one nanosecond more.
    """
    strict, queued = engine(quota), engine(quota)
    refused = False
    times: set[int] = set()
    for cost in costs:
        queue = Entry(PATIENT, cost)
        if refused and queued.quote(START, "a", "", Entry(PATIENT, cost)).promised == START:
            continue  # the strict caller would start now
        queued.offer(START, "a", "", queue)
        answer = strict.offer(START, "a", "", Entry(Policy(max_wait=0, max_queue=10_000), cost))
        if answer is None:
            if refused:
                return  # a small caller finds room that a large one left: phantoms delay nobody
            continue
        refused = True
        time = START + answer.retry_after
        assert time not in times
        assert 0 <= time - queue.promised <= len(times)
        times.add(time)


# --- bounds and books -----------------------------------------------------------------------------------


def test_law_8_a_session_and_a_head_start_do_not_make_a_line_longer() -> None:
    """The bound counts everybody who belongs to the line, wherever in it or outside it they stand."""
    one = engine(Quota(Rate(1, per=3600)))
    policy = Policy(max_wait=None, max_queue=5)
    answers = [one.offer(START, "a", "", Entry(policy, session="s")) for _ in range(8)]
    assert [a.reason if a else None for a in answers] == [None] * 6 + [Reason.QUEUE_FULL] * 2
    answers = [one.offer(START, "b", "", Entry(policy, head_start=n * NS)) for n in range(8)]
    assert [a.reason if a else None for a in answers] == [None] * 6 + [Reason.QUEUE_FULL] * 2


def test_law_8_who_was_refused_for_ever_is_forgotten_too() -> None:
    """A cost that can never fit leaves no tenant behind."""
    one = engine(Quota(Rate(1)))
    for number in range(100):
        one.offer(START, f"tenant-{number}", "", Entry(PATIENT, Cost(2)))
    one.advance(START + 10 * NS)
    assert not one.tenants


def test_law_8_a_gate_that_is_never_idle_forgets_tenants_without_debt() -> None:
    """Tags of tenants that came once and went do not pile up while others keep the gate busy."""
    one = engine(Quota(Rate(100)), {"": Quota(Rate(100, burst=1))})
    for _ in range(400):
        offer(one, START, "busy")
    now = START
    for number in range(300):
        now += 10 * MS
        one.advance(now)
        offer(one, now, f"tenant-{number}")
    assert one.gates[""].backlogged
    one.advance(now + 5 * NS)
    assert len(one.gates[""].fair.finish) < 250
    assert set(one.gates[""].fair.finish) <= set(one.tenants)


def test_law_7_cancelled_calls_of_a_quiet_time_buy_nothing_later() -> None:
    """A debt that was never made cannot be taken back: give-backs count in their own busy period."""
    one = engine(Quota(), {"": Quota(Rate(10, burst=60))})
    early = [offer(one, START, "a") for _ in range(50)]
    for _ in range(30):
        offer(one, START, "a")
        offer(one, START, "b")
    one.advance(START + NS)
    debt = dict(one.gates[""].fair.finish)
    for entry in early[:20]:
        one.settle(START + NS, entry, Usage(0, 0, 0))
    assert one.gates[""].fair.finish["a"] >= debt["a"]


def test_law_2_heads_that_tie_in_everything_do_not_clash() -> None:
    """A line that ends and begins anew with the same job leaves no item that cannot be compared."""
    gates = {"": Quota(concurrency=1)}
    play = Play(engine(Quota(Rate(1000, burst=100)), gates), after=check)
    play.do(Op("offer", tenant="b"))
    play.do(Op("offer", tenant="a"))
    line = play.jobs[1].owner.lines[""]
    for start in (0, 5):
        # What lies about after a drop: the same tag and key, owned by a line that is no more.
        play.engine.gates[""].eligible.items.append((start, play.jobs[1].key, line))
        play.engine.gates[""].eligible.stale += 1
    other = Entry(PATIENT)
    other.key = play.jobs[1].key
    same = play.jobs[1].owner.lines[""]
    assert not line < same
    assert not other < play.jobs[1]


def test_a_job_in_backoff_that_fits_no_more_is_refused_when_it_returns() -> None:
    """`set_quota` to below its cost while it waits outside: NEVER, and not a grant above the burst."""
    play = Play(engine(Quota(Rate(5, burst=5))), after=check)
    play.do(Op("offer", cost=Cost(4)))
    play.do(Op("retry", delay=2 * NS))
    play.do(Op("set_quota", quota=Quota(Rate(5, burst=2))))
    play.do(Op("advance", gap=3 * NS))
    assert play.jobs[0].refusal == Refusal(Reason.NEVER, 0, ("requests", 4, 2))
    assert [told.what for told in play.told] == ["running", "never"]


def test_law_2_a_retry_that_is_due_at_once_goes_before_those_behind_it() -> None:
    """The slot that it frees is its own again: it returns by its key before anybody else is served."""
    play = Play(engine(Quota(), {"": Quota(concurrency=1)}), after=check)
    play.do(Op("offer"))
    play.do(Op("offer"))
    play.do(Op("retry", gap=MS))
    assert [job for job, _ in play.grants] == [0, 0]


def test_a_quota_with_more_buckets_is_taken_with_sessions_waiting() -> None:
    """Two lines and a parked job: every sum is made anew before anybody moves."""
    play = Play(engine(Quota(Rate(1)), TWO_GATES), after=check)
    play.do(Op("offer", gate="x", session="s"))
    play.do(Op("offer", gate="x", cost=Cost(1, 90)))
    play.do(Op("offer", gate="y", session="s"))
    play.do(Op("offer", gate="y", session="t", cost=Cost(1, 90)))
    play.do(Op("offer", gate="y", session="t"))
    play.do(Op("set_quota", quota=Quota(Rate(1), input_tokens=Rate(1, burst=50))))
    assert [entry.state for entry in play.jobs[1:4]] == [State.REFUSED, State.WAITING, State.REFUSED]
    play.drain()


def test_law_13_a_plain_end_does_not_free_a_slot_for_the_past() -> None:
    """`finish` knows no time: it leaves the job to `settle` while anybody could need its slot."""
    one = engine(Quota(Rate(100)), {"": Quota(concurrency=3)})
    jobs = [offer(one, START + n * MS, tenant) for n, tenant in enumerate("ab")]
    waiting = [offer(one, START + n * MS, tenant) for n, tenant in enumerate("ab", 2)]
    assert not any(one.finish(job) for job in jobs)
    one.settle(START + 40 * MS, jobs[0])  # the heads were due at 10 and 11 ms, and one slot was free
    assert [entry.slot - START for entry in waiting] == [10 * MS, 40 * MS]


def test_a_retry_after_its_deadline_is_refused_although_it_need_not_wait() -> None:
    """Its result is no longer wanted, so that the time until it could start does not matter."""
    play = Play(engine(Quota(Rate(5, burst=5))), after=check)
    play.do(Op("offer", timeout=NS))
    play.do(Op("retry", gap=2 * NS, delay=0))
    assert play.jobs[0].reason is Reason.DEADLINE
    assert play.jobs[0].refusal is not None
    assert play.jobs[0].refusal.retry_after > 0
