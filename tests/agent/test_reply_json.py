"""A reply survives a store: it is written as JSON and read again, the same."""

from __future__ import annotations

import json

from agent import Reply
from scheduler import Usage
from scheduler.stores.results import dump, load
from tests.agent.claudes import connected


async def test_a_reply_is_the_same_after_a_store() -> None:
    async with connected() as (_, agent):
        session = await agent.new_session("acme")
        reply = await agent.run(session.id, "Say hi")
    text = dump(reply)
    twin = load(text)
    assert isinstance(twin, Reply)
    assert isinstance(twin.usage, Usage)
    assert dump(twin) == text
    assert (twin.text, twin.usage, twin.model) == (reply.text, reply.usage, reply.model)
    assert twin.message.model_dump() == reply.message.model_dump()
    assert twin.message.content[0].type == "text"


def test_what_is_json_is_kept_as_it_is() -> None:
    for result in (None, 1.5, "text", [1, {"a": None}]):
        assert load(dump(result)) == result
    assert json.loads(dump("x")) == {"value": "x"}
