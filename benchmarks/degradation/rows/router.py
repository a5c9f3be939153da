"""LiteLLM's router, where it is installed, and on the real clock only.

It reads the wall clock and works in threads, so that it cannot be played in virtual time; and it brings sixty
packages along, so that no group of this project names it. Its provider here is the simulated account. Told to
enforce the limits by itself (`enforce_model_rate_limits`), it did the same in a short trial: what is scarce
are output tokens, which it only counts together with input, and afterwards.
"""

from __future__ import annotations

from typing import Any, ClassVar

import httpx
import litellm

from benchmarks.degradation.account import Account
from benchmarks.degradation.journal import Journal
from benchmarks.degradation.rows.base import Row, Setting
from benchmarks.degradation.trace import Prompt
from scheduler.errors import UpstreamError

PROVIDER = "simulated"


class LiteLLMRouter(Row):
    """One deployment that declares the account's limits, and the router's own two retries."""

    name: ClassVar[str] = "LiteLLM router"

    def __init__(self, setting: Setting, account: Account, journal: Journal) -> None:
        super().__init__(setting, account, journal)
        self._prompts: dict[str, Prompt] = {}
        provider = f"{PROVIDER}-{len(litellm.custom_provider_map)}"
        handler = litellm.CustomLLM()
        handler.acompletion = self._answer
        litellm.suppress_debug_info = True
        litellm.custom_provider_map = [
            *litellm.custom_provider_map,
            {"provider": provider, "custom_handler": handler},
        ]
        requests, input_tokens, output_tokens = setting.offer.per_minute
        parameters = {"model": f"{provider}/claude", "rpm": requests, "tpm": input_tokens + output_tokens}
        deployment = {"model_name": "claude", "litellm_params": parameters}
        self._router = litellm.Router(model_list=[deployment])

    async def serve(self, prompt: Prompt) -> None:
        """Ask the router."""
        self._prompts[str(prompt.number)] = prompt
        message = {"role": "user", "content": str(prompt.number)}
        try:
            await self._router.acompletion(model="claude", messages=[message])
        except litellm.RateLimitError as error:
            raise UpstreamError("rate_limited", 429) from error

    async def _answer(self, *_: Any, messages: list[dict[str, str]], model_response: Any, **__: Any) -> Any:
        """What the provider does: the account's answer, or the error that LiteLLM makes of a 429."""
        try:
            await self.account.call(self._prompts[messages[-1]["content"]])
        except UpstreamError as error:
            request = httpx.Request("POST", "http://127.0.0.1")
            headers = {} if error.retry_after is None else {"retry-after": f"{error.retry_after:.0f}"}
            response = httpx.Response(error.status or 500, headers=headers, request=request)
            raise litellm.RateLimitError(str(error), PROVIDER, "claude", response=response) from None
        model_response.choices[0].message.content = "answered"
        return model_response
