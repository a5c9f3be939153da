"""An agent over the Messages API: sessions, tools and hooks. With a scheduler's hook it waits its turn."""

from agent.agent import Agent, TextStream
from agent.batches import BatchDesk
from agent.errors import SessionLost, TooManyTurns, UnknownSession, WrongTenant
from agent.messages import Message, Reply, ToolCall
from agent.sessions import MemorySessions, Session, Sessions, Turn
from agent.tools import Tool, ToolError

__all__ = [
    "Agent",
    "BatchDesk",
    "MemorySessions",
    "Message",
    "Reply",
    "Session",
    "SessionLost",
    "Sessions",
    "TextStream",
    "TooManyTurns",
    "Tool",
    "ToolCall",
    "ToolError",
    "Turn",
    "UnknownSession",
    "WrongTenant",
]
