"""Settings for the whole suite: how hypothesis draws, and which copy of the packages is under test."""

import asyncio
import importlib.util
import sysconfig
from pathlib import Path

import pytest
from hypothesis import Phase, settings

# A failure prints the line that replays it. No deadline per example: a busy machine would break it.
settings.register_profile("default", deadline=None, print_blob=True)
# The same draws in every run, so that a red build is red again on the next machine.
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True)
# To find the break is enough for `make mutants`: shrinking the example would cost most of its time.
settings.register_profile(
    "mutants", parent=settings.get_profile("ci"), phases=(Phase.explicit, Phase.generate)
)
settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option with which the built wheel is tested."""
    parser.addoption(
        "--installed",
        action="store_true",
        help="test the installed wheel: insist that it is, and leave out what needs the repository",
    )


def pytest_sessionstart(session: pytest.Session) -> None:
    """Stop at once if `--installed` would test a source tree by accident."""
    # pytest-asyncio makes a loop for a synchronous test that comes first, and leaves it unclosed.
    asyncio.set_event_loop(None)
    if not session.config.getoption("--installed"):
        return
    site_packages = Path(sysconfig.get_path("purelib")).resolve()
    for package in ("scheduler", "agent"):
        spec = importlib.util.find_spec(package)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin is None or not origin.is_relative_to(site_packages):
            raise pytest.UsageError(f"{package} is imported from {origin}, not from the installed wheel")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests of the repository when the wheel is tested elsewhere."""
    if not config.getoption("--installed"):
        return
    left_out = [item for item in items if item.get_closest_marker("repository")]
    items[:] = [item for item in items if not item.get_closest_marker("repository")]
    config.hook.pytest_deselected(items=left_out)
