"""For tests, also of your own application: a simulated Claude API on the loopback interface."""

from scheduler.testing.claude import (
    Attempt,
    ClaudeConfig,
    ClaudeStatistics,
    ConfigError,
    Fault,
    Latency,
    Limits,
    Match,
    Script,
    SimulatedClaude,
    ToolCall,
    credential_id,
    damage,
    effects,
    serve,
)
from scheduler.testing.virtual import SleepsForever, VirtualClock, VirtualLoop, run_virtual

__all__ = [
    "Attempt",
    "ClaudeConfig",
    "ClaudeStatistics",
    "ConfigError",
    "Fault",
    "Latency",
    "Limits",
    "Match",
    "Script",
    "SimulatedClaude",
    "SleepsForever",
    "ToolCall",
    "VirtualClock",
    "VirtualLoop",
    "credential_id",
    "damage",
    "effects",
    "run_virtual",
    "serve",
]
