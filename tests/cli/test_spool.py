"""The index of a prompt file: every line is somebody's, once, whatever the file looks like."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.cli.spool import Replies, Spool
from scheduler.cli.usage import UsageError

tenants = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=3)
prompts = st.text(min_size=1, max_size=30)
junk = st.sampled_from([b"", b"null", b"[]", b"{", b'{"tenant": 3}', b"\xff\xfe", b'"x"'])
good = st.tuples(tenants, prompts).map(
    lambda pair: json.dumps({"tenant": pair[0], "prompt": pair[1]}).encode()
)


@given(st.lists(st.one_of(good, junk), max_size=150), st.booleans(), st.data())
def test_each_tenant_gets_its_lines_in_order_and_nothing_is_lost(
    lines: list[bytes], newline_at_end: bool, data: st.DataObject
) -> None:
    """Against a plain reading of the file; answered lines are left out after a restart."""
    expected: dict[str, list[tuple[int, str]]] = {}
    for number, raw in enumerate(lines, 1):
        try:
            line = json.loads(raw)
            prompt = line["prompt"]
            expected.setdefault(line["tenant"], []).append((number, prompt))
        except (ValueError, KeyError, TypeError):
            continue
    with TemporaryDirectory() as folder:
        file, out = Path(folder, "p.jsonl"), Path(folder, "r.jsonl")
        file.write_bytes(b"\n".join(lines) + (b"\n" if newline_at_end else b""))
        answered = set()
        with closing(Spool(file)) as spool:
            bad = list(spool.scan())
            blank = sum(not raw.strip() for raw in lines)
            assert len(bad) + blank + sum(map(len, expected.values())) == len(lines)
            assert [tenant for tenant, _ in spool.tenants()] == list(expected)
            for tenant, count in spool.tenants():
                found = [(line.number, spool.prompt(line)) for line in spool.unanswered(tenant)]
                assert found == expected[tenant]
                assert count == len(found)
            with closing(Replies(out, spool)) as replies:
                for tenant, _ in list(spool.tenants()):
                    for line in list(spool.unanswered(tenant)):
                        if data.draw(st.booleans()):
                            replies.write({"id": line.id, "line": line.number, "reply": "ok"})
                            answered.add(line.number)
        with closing(Spool(file)) as again:
            list(again.scan())
            Replies(out, again).close()
            left = {line.number for tenant, _ in again.tenants() for line in again.unanswered(tenant)}
            assert left == {number for line in expected.values() for number, _ in line} - answered


def test_a_tenant_with_a_long_line_does_not_hide_the_others() -> None:
    """Pages of a tenant's lines and pages of tenants do not disturb each other."""
    with TemporaryDirectory() as folder:
        file = Path(folder, "p.jsonl")
        rows = [{"tenant": "big", "prompt": "x"}] * 500
        rows += [{"tenant": f"t{i}", "prompt": "x"} for i in range(300)]
        file.write_text("\n".join(map(json.dumps, rows)))
        with closing(Spool(file)) as spool:
            assert list(spool.scan()) == []
            assert list(spool.tenants()) == [("big", 500), *((f"t{i}", 1) for i in range(300))]
            assert len(list(spool.unanswered("big"))) == 500


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    """Two lines of a tenant."""
    file = tmp_path / "p.jsonl"
    file.write_text('{"tenant": "a", "prompt": "x"}\n' * 2)
    with closing(Spool(file)) as found:
        assert list(found.scan()) == []
        yield found


REPLY = '{"id": "line-1", "line": 1, "tenant": "a", "reply": "hi"}'


@pytest.mark.parametrize(
    "text",
    [
        "my precious notes, no newline",
        '{"a": 1}',
        '{"id": 7, "name": "mine"}\n',
        '{"id": "line-1", "tenant": "a", "prompt": "of another file"}',
        f"{REPLY}\nnotes",
        f'{REPLY}\n{{"id": "line-2\n',
        '{"id": null, "line": ' + "9" * 30 + "}",
        "[" * 50_000,
        '"' + "x" * 100,
    ],
)
def test_a_file_that_is_not_replies_is_left_as_it_is(spool: Spool, tmp_path: Path, text: str) -> None:
    """Also without a newline at its end."""
    out = tmp_path / "out"
    out.write_text(text)
    with pytest.raises(UsageError, match=r"line \d of .* is not a reply of an earlier run"):
        Replies(out, spool)
    assert out.read_text() == text


@pytest.mark.parametrize("cut", range(len(REPLY)))
def test_a_record_cut_short_anywhere_is_taken_away(spool: Spool, tmp_path: Path, cut: int) -> None:
    out = tmp_path / "out"
    out.write_text(f"{REPLY}\n{REPLY[:cut]}")
    with closing(Replies(out, spool)) as replies:
        place = replies.write({"id": "line-2", "line": 2, "reply": "again"})
        assert replies.read(place) == "again"
    assert [json.loads(line)["line"] for line in out.read_text().splitlines()] == [1, 2]


def test_a_record_that_lacks_its_newline_only_is_kept(spool: Spool, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text(REPLY)
    with closing(Replies(out, spool)) as replies:
        replies.write({"id": "line-2", "line": 2, "reply": "again"})
    assert [json.loads(line)["line"] for line in out.read_text().splitlines()] == [1, 2]
    assert [line.id for line in spool.unanswered("a")] == ["line-2"]


def test_one_run_at_a_time_writes_a_file(spool: Spool, tmp_path: Path) -> None:
    """What it wrote stays, and whoever comes when it has ended may go on."""
    out = tmp_path / "out"
    with closing(Replies(out, spool)) as replies:
        replies.write({"id": "line-1", "line": 1, "reply": "hi"})
        with pytest.raises(UsageError, match="--out: another run writes"):
            Replies(out, spool)
    Replies(out, spool).close()
    assert len(out.read_text().splitlines()) == 1
