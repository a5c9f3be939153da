"""The benchmark of degradation: nothing is lost or counted twice, and nobody knows what nobody can know."""

import json
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from benchmarks.degradation.__main__ import PAGE, RESULTS, main
from benchmarks.degradation.account import Offer
from benchmarks.degradation.chart import chart
from benchmarks.degradation.fairness import Shares, jain
from benchmarks.degradation.figures import figures
from benchmarks.degradation.journal import Journal, Outcome
from benchmarks.degradation.play import DEADLINE_S, alone, virtually
from benchmarks.degradation.report import document, replaced
from benchmarks.degradation.rows import ROWS
from benchmarks.degradation.rows.base import Guess
from benchmarks.degradation.trace import TENANTS, Prompt, Trace, read, synthetic
from benchmarks.degradation.usage import waiting_use
from benchmarks.measure import NS
from tests.project.repository import ROOT

pytestmark = [pytest.mark.repository, pytest.mark.timeout(60)]

LOADS = (1.0, 3.0)
BURST_S = 10.0

every_row = pytest.mark.parametrize("name", ROWS)
every_load = pytest.mark.parametrize("load", LOADS)


@cache
def trace(seed: int = 1, minutes: float = 1.0) -> Trace:
    """A short one."""
    return synthetic(seed, minutes)


@cache
def played(name: str, load: float, seed: int = 1) -> Journal:
    """One row at one load."""
    offer = Offer.of(trace(seed), load, BURST_S)
    return virtually(ROWS[name], trace(seed), offer, TENANTS, seed)


def prompt(number: int, *, at: float = 0, tokens: int = 100, tenant: str = "a") -> Prompt:
    """A prompt that takes a second and a millisecond for each token."""
    return Prompt(number, tenant, round(at * NS), 10, tokens, 10, NS, NS // 1000)


@every_row
@every_load
def test_every_prompt_ends_exactly_once(name: str, load: float) -> None:
    fates = played(name, load).fates  # the journal itself refuses a second end
    assert set(fates) == {prompt.number for prompt in trace().prompts}
    assert all(fate.outcome is not None for fate in fates.values())
    for fate in fates.values():
        if fate.outcome is Outcome.ANSWERED:
            assert fate.begun is not None
            assert fate.ended is not None
            took = fate.prompt.first + fate.prompt.per_token * fate.prompt.output_tokens
            shorter = fate.prompt.first + fate.prompt.per_token * 256
            bounds = (took,) if "ladder" not in name else (took, shorter)
            assert any(fate.ended - fate.begun == pytest.approx(bound, abs=1000) for bound in bounds)
            assert fate.submitted == pytest.approx(fate.prompt.arrival, abs=1000)


@every_row
@every_load
def test_every_call_is_let_in_or_refused(name: str, load: float) -> None:
    journal = played(name, load)
    calls = sum(fate.calls for fate in journal.fates.values())
    assert calls == len(journal.admissions) + len(journal.aside) + len(journal.refusals)
    assert not journal.aside or "ladder" in name
    assert all(fate.calls <= 3 or "waitline" in name for fate in journal.fates.values())


@every_row
@every_load
@pytest.mark.parametrize("dimension", [0, 1])
def test_the_account_lets_no_more_in_than_its_limit(name: str, load: float, dimension: int) -> None:
    offer = Offer.of(trace(), load, BURST_S)
    rate, most = offer.per_minute[dimension] / 60 / NS, offer.per_minute[dimension] * BURST_S / 60
    level, before = most, 0
    for at, admitted in played(name, load).admissions:
        level = min(most, level + rate * (at - before)) - admitted.amounts[dimension]
        before = at
        assert level > -1e-3


@every_row
@every_load
def test_the_account_lets_nobody_in_while_output_is_overdrawn(name: str, load: float) -> None:
    offer = Offer.of(trace(), load, BURST_S)
    rate, most = offer.per_minute[2] / 60 / NS, offer.per_minute[2] * BURST_S / 60
    admissions = played(name, load).admissions
    for at, _ in admissions:
        produced = sum(
            min(other.output_tokens, max(0, (at - begun - other.first) // other.per_token))
            for begun, other in admissions
            if begun < at
        )
        assert produced < most + rate * at


@pytest.mark.parametrize("name", ["SDK retries", "waitline, reserve"])
def test_a_seed_repeats_a_run(name: str) -> None:
    def moments(journal: Journal) -> list[tuple[object, ...]]:
        return [(fate.submitted, fate.begun, fate.ended, fate.outcome) for fate in journal.fates.values()]

    offer = Offer.of(trace(), 3.0, BURST_S)
    again = virtually(ROWS[name], synthetic(1, 1.0), offer, TENANTS, 1)
    assert moments(again) == moments(played(name, 3.0))
    assert moments(played(name, 3.0, seed=2)) != moments(played(name, 3.0))


@pytest.mark.parametrize("seed", [1, 2])
def test_waitline_with_a_reserve_meets_its_floors_at_full_load(seed: int) -> None:
    several = trace(seed, 5.0)
    offer, kind = Offer.of(several, 1.0, BURST_S), ROWS["waitline, reserve"]
    journal = virtually(kind, several, offer, TENANTS, seed)
    row = figures(journal, alone(kind, several, offer, TENANTS, seed), several, offer)
    assert row["answered"] == 100
    assert row["limited_steady"] == 0
    assert (row["use_waiting"] or 0) >= 97
    assert (row["jain"] or 0) >= 0.98
    assert (row["quiet_ratio"] or 9) <= 1.2


def test_the_ladder_answers_more_in_time_than_any_other_row_under_three_times_the_load() -> None:
    def in_time(name: str) -> int:
        fates = played(name, 3.0).having(Outcome.ANSWERED)
        return sum((fate.total or 0) <= DEADLINE_S * NS for fate in fates)

    counts = {name: in_time(name) for name in ROWS}
    best = counts.pop("waitline, ladder")
    assert best > max(counts.values())
    assert played("waitline, ladder", 3.0).refusals == []


@every_load
def test_load_is_demand_over_the_scarcest_limit(load: float) -> None:
    offer = Offer.of(trace(), load, BURST_S)
    ratios = [demand / limit for demand, limit in zip(trace().per_minute(), offer.per_minute, strict=True)]
    assert max(ratios) == ratios[offer.binding] == pytest.approx(load, rel=0.01)


def test_an_answer_is_expected_by_past_ones_only() -> None:
    guess = Guess(default=500, trust=4)
    assert guess.of("a") == 500
    for _ in range(100):
        guess.learn("a", 100)
    assert guess.of("a") == pytest.approx(100, abs=10)
    assert 100 < guess.of("b") < 150  # by everybody's
    assert Guess(margin=1.5).of("a") == 750


def test_the_first_queue_is_first_come_first_served() -> None:
    begun = [prompt.number for _, prompt in played("FIFO, paced by requests", 1.0).admissions]
    refused = played("FIFO, paced by requests", 1.0).refusals
    assert refused == []
    assert begun == sorted(begun)


def test_jain_is_one_for_equals_and_one_over_n_for_one_of_n() -> None:
    assert jain([3, 3, 3]) == pytest.approx(1)
    assert jain([5, 0, 0, 0]) == pytest.approx(0.25)
    assert jain([]) is None


def journal_of(moments: Mapping[int, tuple[float, float, float]], tenants: str, tokens: int = 100) -> Journal:
    """A journal with prompts that were submitted, begun and ended at these seconds."""
    now = 0
    journal = Journal(lambda: now)
    prompts = {number: prompt(number, tokens=tokens, tenant=tenants[number]) for number in moments}
    events = sorted(
        (time, step, number) for number, times in moments.items() for step, time in enumerate(times)
    )
    for time, step, number in events:
        now = round(time * NS)
        if step == 0:
            journal.submitted(prompts[number])
        elif step == 1:
            journal.begun(prompts[number])
        else:
            journal.ended(prompts[number], Outcome.ANSWERED)
    return journal


def test_shares_are_of_the_time_in_which_all_of_them_had_work_waiting() -> None:
    moments = {0: (0, 9, 10), 1: (2, 11, 12), 2: (1, 4, 5), 3: (3, 8, 9), 4: (0, 1, 2)}
    shares = Shares.of(journal_of(moments, "aabbc"), 4 * NS)
    assert shares == Shares(1 * NS, 8 * NS, ("a", "b"))


def offer_of(per_minute: int, burst_s: float) -> Offer:
    """Output tokens alone are scarce."""
    return Offer(1.0, (10_000, 10_000_000, per_minute), 2, burst_s)


@pytest.mark.parametrize(
    ("begun", "percent"),
    [
        ((0, 1, 2, 3), 100),  # one a second, and a hundred tokens a second
        ((0, 2, 4, 6), 50),
    ],
)
def test_permits_that_pile_up_while_work_waits_are_lost(begun: tuple[float, ...], percent: float) -> None:
    journal = journal_of({number: (0, at, 9) for number, at in enumerate(begun)}, "aaaa")
    assert waiting_use(journal, offer_of(6000, 1.0), 0) == pytest.approx(percent)


def test_a_file_of_the_public_schema_is_read(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"
        "2023-11-16 18:15:50.9951690,396,109\n2023-11-16 18:25:50.0000000,1,1\n"
    )
    found = read(file, 1, minutes=5)
    assert [prompt.amounts for prompt in found.prompts] == [(1, 374, 44), (1, 396, 109)]
    assert [prompt.arrival for prompt in found.prompts] == [0, 4_314_579_000]
    assert read(file, 1, minutes=5) == found


def test_a_few_tenants_are_noisy_and_most_are_quiet() -> None:
    prompts = trace().prompts
    noisy = sum(prompt.tenant in trace().noisy for prompt in prompts)
    assert len({prompt.tenant for prompt in prompts}) == TENANTS
    assert 0.6 < noisy / len(prompts) < 0.85
    assert all(one.arrival <= other.arrival for one, other in pairwise(prompts))


def test_the_picture_is_well_formed_and_its_labels_are_apart() -> None:
    row = figures(
        played("waitline", 3.0), [], Trace("", (), frozenset(), 60 * NS), Offer.of(trace(), 3.0, 10)
    )
    picture = ET.fromstring(chart({"1": dict.fromkeys(ROWS, row), "3": dict.fromkeys(ROWS, row)}))
    places = [(text.get("x"), text.get("y")) for text in picture.iter() if text.tag.endswith("text")]
    assert len(places) == len(set(places))


def test_the_program_runs_and_tells_every_row() -> None:
    command = [sys.executable, "-m", "benchmarks.degradation", "--quick", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loads = json.loads(done.stdout)["loads"]
    assert set(loads) == {"1", "3"}
    assert all(set(rows) == set(ROWS) for rows in loads.values())


def test_a_burst_that_no_prompt_fits_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick", "--burst", "0.1"]) == 2
    assert "--burst" in capsys.readouterr().err


def test_a_part_of_the_page_is_exchanged_and_the_rest_is_kept() -> None:
    page = "a\n<!-- degradation: begin x -->\nold\n<!-- degradation: end x -->\nb"
    assert replaced(page, "x", "new").split() == [
        *["a", "<!--", "degradation:", "begin", "x", "-->", "new"],
        *["<!--", "degradation:", "end", "x", "-->", "b"],
    ]
    with pytest.raises(ValueError, match="markers"):
        replaced(page, "y", "new")


@pytest.mark.parametrize("part", ["synthetic", "file", "real clock"])
def test_the_page_shows_the_figures_that_are_kept(part: str) -> None:
    kept = json.loads(RESULTS.read_text())[part]
    page = PAGE.read_text()
    assert replaced(page, part, document(kept["loads"], kept["facts"])) == page
