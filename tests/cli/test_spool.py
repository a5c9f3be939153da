"""The index of a prompt file: every line is somebody's, once, whatever the file looks like."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import strategies as st

from scheduler.cli.spool import Replies, Spool

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
