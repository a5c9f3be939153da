"""Databases for the suite, on each server that the stores are tested on."""

from tests.stores.servers import dsn, server

__all__ = ["dsn", "server"]
