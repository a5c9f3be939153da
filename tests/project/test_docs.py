"""What the documentation shows is run.

Every ```python block of README.md and docs/ is executed: the blocks of a page in order, in one namespace,
on one event loop, with `await` at the top level. A block is only compiled if the line before it says why it
is not run: `<!-- not run: reason -->`. The targets, commands and options in ```console blocks must exist.
The ```sql blocks run on a database with the schema, and leave nothing behind.
"""

import ast
import asyncio
import inspect
import io
import re
import textwrap
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

import asyncpg
import pytest
from cyclopts import CycloptsError
from rich.console import Console

from scheduler.cli import gates, jobs, quotas  # noqa: F401 - they add their commands
from scheduler.cli.app import app
from scheduler.stores.postgres.connections import PINNED
from tests.project.repository import ROOT, name_of
from tests.stores.servers import running

pytestmark = [pytest.mark.repository, pytest.mark.timeout(60)]

FENCE = re.compile(
    r"^(?P<indent>[ \t]*)```(?P<language>\w+)[^\n]*\n(?P<body>.*?)^(?P=indent)```[ \t]*$",
    re.MULTILINE | re.DOTALL,
)
EXCUSE = re.compile(r"<!-- not run: \S[^\n]* -->\s*\Z")
PROMPT = re.compile(r"^\$ (make|waitline)\b(.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    language: str
    body: str
    is_run: bool

    def __str__(self) -> str:
        return f"{name_of(self.page)}:{self.line}"

    def compiled(self) -> CodeType:
        """Compile the block so that an error points at its line on the page."""
        source = "\n" * self.line + self.body
        code = compile(
            source, str(self.page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True
        )
        assert isinstance(code, CodeType)
        return code


def pages() -> list[Path]:
    """Return the pages that a reader sees."""
    return [path for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))] if path.exists()]


def blocks(page: Path, *languages: str) -> list[Block]:
    """Return the fenced blocks of a page in these languages."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page,
            line=text.count("\n", 0, fence.start()) + 1,
            language=fence["language"],
            body=textwrap.dedent(fence["body"]),
            is_run=not EXCUSE.search(text, 0, fence.start()),
        )
        for fence in FENCE.finditer(text)
        if fence["language"] in languages
    ]


def run(page_blocks: list[Block]) -> None:
    """Run blocks in order. One without `await` runs outside the loop, where `asyncio.run` works too."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with asyncio.Runner() as runner:
        for block in page_blocks:
            code = block.compiled()
            if not block.is_run:
                continue
            if code.co_flags & inspect.CO_COROUTINE:
                runner.run(eval(code, namespace))
            else:
                exec(code, namespace)


def with_python() -> list[Path]:
    """Return the pages that have something to run."""
    return [page for page in pages() if blocks(page, "python")]


def commands() -> list[tuple[str, str, list[str]]]:
    """Return every `$ make …` and `$ waitline …`: where, program, words."""
    shown = [block for page in pages() for block in blocks(page, "console")]
    return [
        (str(block), match[1], match[2].split()) for block in shown for match in PROMPT.finditer(block.body)
    ]


def test_there_are_pages_and_blocks_to_run() -> None:
    assert {"README.md", "docs/index.md", "docs/tutorial.md"} <= {name_of(page) for page in pages()}
    assert {"README.md", "docs/tutorial.md"} <= {name_of(page) for page in with_python()}
    assert any(block.is_run for block in blocks(ROOT / "docs" / "tutorial.md", "python"))
    assert {program for _, program, _ in commands()} == {"make", "waitline"}


@pytest.mark.parametrize("page", with_python(), ids=name_of)
def test_the_code_on_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # what a page writes is not left in the repository
    run(blocks(page, "python"))


def test_the_make_targets_on_the_pages_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    used = [(where, word) for where, program, words in commands() if program == "make" for word in words]
    assert [(where, word) for where, word in used if "=" not in word and word not in targets] == []


def test_the_commands_and_options_on_the_pages_exist() -> None:
    unknown = []
    for where, program, words in commands():
        if program != "waitline":
            continue
        command = [word for word in words[:1] if not word.startswith("-")]
        text = help_of(*command)
        assert text, f"{where}: there is no `waitline {' '.join(command)}`"
        if command in (["gates"], ["jobs"], ["quotas"]):
            text += help_of(*words[:2])
        options = [word.partition("=")[0] for word in words if word.startswith("--")]
        unknown += [f"{where}: {' '.join(words[:2])} {option}" for option in options if option not in text]
    assert unknown == []


async def test_the_queries_on_the_pages_run(request: pytest.FixtureRequest) -> None:
    shown = [block for page in pages() for block in blocks(page, "sql")]
    assert shown
    async with running(request.config, "18").database(migrated=True) as dsn:
        connection = await asyncpg.connect(dsn)
        for block in shown:
            transaction = connection.transaction()
            await transaction.start()
            try:
                await connection.execute(block.body)
            except asyncpg.PostgresError as error:
                pytest.fail(f"{block}: {error}")
            await transaction.rollback()
        await connection.close()


def test_the_settings_on_the_pages_are_those_of_a_connection() -> None:
    """Whoever gives them to the role, because of a pooler, has the same plans."""
    shown = (ROOT / "docs/operations.md").read_text()
    given = dict(re.findall(r"^alter role current_user set (\w+) = '?(\w+)'?;$", shown, re.MULTILINE))
    assert given == {name: value for name, value in PINNED.items() if name != "application_name"}


QUIETLY: dict[str, Any] = {"exit_on_error": False, "print_error": False, "result_action": "return_value"}


@cache
def help_of(*command: str) -> str:
    """Return what `waitline COMMAND --help` prints; nothing if there is no such command."""
    shown = io.StringIO()
    try:
        app([*command, "--help"], console=Console(file=shown, width=200), **QUIETLY)
    except CycloptsError:
        return ""
    return shown.getvalue()


PAGE = """
```python
async def one() -> int:
    return 1

total = await one()
```

```python
total += 1
{last}
```

<!-- not run: it needs a key -->
```python
raise RuntimeError
```
"""


def page_with(folder: Path, last: str) -> list[Block]:
    """Write a page that ends in some line of code, and return its blocks."""
    page = folder / "page.md"
    page.write_text(PAGE.format(last=last))
    return blocks(page, "python")


def test_blocks_share_a_namespace_and_may_await(tmp_path: Path) -> None:
    run(page_with(tmp_path, "assert total == 2"))


def test_a_block_that_is_wrong_fails(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        run(page_with(tmp_path, "assert total == 3"))


def test_a_program_may_start_a_loop_of_its_own(tmp_path: Path) -> None:
    run(page_with(tmp_path, "import asyncio\nassert asyncio.run(one()) == 1"))


def test_only_a_reason_keeps_a_block_from_running(tmp_path: Path) -> None:
    assert [block.is_run for block in page_with(tmp_path, "")] == [True, True, False]
    page = tmp_path / "page.md"
    page.write_text(page.read_text().replace("not run: it needs a key", "not run:"))
    with pytest.raises(RuntimeError):
        run(blocks(page, "python"))
