"""Settings for the tests of the agent."""

import pytest


@pytest.fixture(autouse=True)
def straight_to_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK's client obeys a proxy even for the loopback interface."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
