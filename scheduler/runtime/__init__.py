"""The in-process scheduler: engine, clock and timer, handlers."""
