"""Moved to `scheduler.stores.values`."""

from scheduler.stores.values import *  # noqa: F403
