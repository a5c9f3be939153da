"""The server that the tests of faults kill."""

from collections.abc import Iterator

import pytest

from tests.faults.stage import Machine, machine


@pytest.fixture(scope="session")
def server() -> Iterator[Machine]:
    """A server of these tests' own: others would not like what is done to it."""
    with machine() as found:
        yield found
