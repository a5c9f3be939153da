"""Databases for the tests of the stores."""

from tests.stores.servers import dsn, empty_dsn, server

__all__ = ["dsn", "empty_dsn", "server"]
