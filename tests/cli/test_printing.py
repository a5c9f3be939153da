"""What is printed is what there is: no markup, no orders to the terminal, nothing cut."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from scheduler.cli import printing
from scheduler.cli.demo import table
from scheduler.cli.scenes import Prompt

ODD = "[/acme] [bold]:smile:"


def test_names_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    printing.say(ODD)
    rows = printing.listing("tenant")
    rows.add_row(ODD)
    printing.console().print(rows)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == ODD
    assert shown[-1].strip() == ODD


def test_a_terminal_obeys_no_name() -> None:
    assert printing.printable("acme") == "acme"
    assert printing.printable("\x1b[31macme") == r"'\x1b[31macme'"
    assert len(printing.short("\x1b" * 99)) == 40


def test_in_a_pipe_a_long_name_is_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    rows = printing.listing("tenant", "state")
    rows.add_row("x" * 512, "waiting")
    printing.console().print(rows)
    assert capsys.readouterr().out.splitlines()[1].split() == ["x" * 512, "waiting"]


def on_a_terminal(width: int, picture: object) -> str:
    screen = Console(file=StringIO(), width=width, markup=False)
    screen.print(picture)
    assert isinstance(screen.file, StringIO)
    return screen.file.getvalue()


def test_a_narrow_terminal_folds_a_name() -> None:
    rows = printing.listing("gate", "state")
    rows.add_row("a" * 100, "closed: a spending limit was reached")
    shown = on_a_terminal(60, rows)
    assert shown.count("a") >= 100 + 4
    assert "…" not in shown


def test_a_narrow_terminal_shows_all_of_the_demo() -> None:
    blocked = Prompt("strict", "acme", 8, "Say hi 8", refused=1.5)
    shown = on_a_terminal(60, table([blocked])).split()
    assert shown[-4:] == ["BLOCKED", "-", "wait", "1500ms"]
    times = {"promised": 1.5, "started": 1.502, "answered": 1.6, "reply": "Hi there!"}
    prompts = [Prompt(scene, "quiet", 8, "Say hi 8", **times) for scene in ("quiet alone", "noisy neighbour")]  # type: ignore[arg-type]
    shown = on_a_terminal(60, table(prompts)).split()
    for word in ("neighbour", "promised", "measured", "1.500", "1.502", "there!"):
        assert word in shown


@pytest.mark.parametrize(
    ("value", "text"), [(2_000_000, "2,000,000"), (600, "600"), (1 / 60, "0.0167"), (2.5, "2.5"), (0, "0")]
)
def test_a_small_number_is_not_0(value: float, text: str) -> None:
    assert printing.number(value) == text
