"""Settings for the properties of the core."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give a property its hundred examples even on a busy machine."""
    for item in items:
        if "tests/core/" in item.nodeid or item.nodeid.startswith("core/"):
            item.add_marker(pytest.mark.timeout(120))
