"""A simulated Anthropic Messages API on the loopback interface: limits, latencies, faults and an oracle."""

from scheduler.testing.claude import damage, effects
from scheduler.testing.claude.config import ClaudeConfig, Latency
from scheduler.testing.claude.faults import Fault, Match
from scheduler.testing.claude.limits import Limits
from scheduler.testing.claude.loading import ConfigError
from scheduler.testing.claude.oracle import Attempt, ClaudeStatistics, credential_id
from scheduler.testing.claude.scripts import Script, ToolCall
from scheduler.testing.claude.server import SimulatedClaude, serve

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
    "ToolCall",
    "credential_id",
    "damage",
    "effects",
    "serve",
]
