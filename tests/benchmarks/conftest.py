"""The benchmarks are programs of the repository: the wheel does not have them."""

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave these tests out where their imports would fail: away from the repository."""
    return True if config.getoption("--installed") and collection_path.suffix == ".py" else None
