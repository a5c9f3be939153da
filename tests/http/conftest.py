"""Settings for the tests of the HTTP edge."""

import asyncio

import pytest


def pytest_collection_modifyitems() -> None:
    """Say that there is no loop: pytest-asyncio else makes one when it looks for it, and never closes it."""
    asyncio.set_event_loop(None)


@pytest.fixture(autouse=True)
def straight_to_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTP clients obey a proxy even for the loopback interface."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
