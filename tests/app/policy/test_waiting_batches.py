"""A line of a batch that waits for its key or for the queue is answered under the policy of the time when it is answered."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from app.core.admission import Key, RateLimits
from app.core.errors import RateLimited
from steering.engine.api import GenerationRequest, TokenEvent
from steering.errors import Overloaded
from tests.app.api.test_batch import finished, output, started
from tests.app.conftest import Server, StartServer
from tests.fakes import ScriptedEngine
from tests.polling import until

LINE = {"prompt": "a", "max_tokens": 2}
POLICY = {
    "mandatory": [{"vector": "sentiment", "strength": 0.1}],
    "monitors": [{"name": "watch", "vector": "sentiment", "above": 0.0}],
}


class Limits(RateLimits):
    """Limits that a key has reached until they are `open`. charges: how often tokens were counted."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.refused, self.charges = True, False, 0

    def charge_tokens(self, key: Key, tokens: int) -> Callable[[], None]:
        """See RateLimits.charge_tokens."""
        if not self.open:
            self.refused = True
            raise RateLimited("the key has used its tokens", retry_after=0.01)
        self.charges += 1
        return super().charge_tokens(key, tokens)


class FullEngine(ScriptedEngine):
    """An engine whose queue is full until it is `open`."""

    open, refused = True, False

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        """See Engine.generate."""
        if not self.open:
            self.refused = True
            raise Overloaded("the queue is full")
        async for event in super().generate(request):
            yield event


async def is_governed(server: Server, gate: Limits | FullEngine) -> bool:
    """Sets a policy while a line waits at the gate, and returns whether it was answered under that policy."""
    await server.register()
    gate.open = False
    job = await started(server, LINE)
    await until(lambda: gate.refused)
    assert (await server.client.put("/v1/policy", json=POLICY)).status_code == 200
    gate.open = True
    await asyncio.wait_for(finished(server, job), 30)
    (line,) = await output(server, job)
    scores = (await server.client.get("/v1/monitors/watch")).json()["scores"]
    return bool(line["response"]["steering"].get("mandatory")) and scores > 0


async def test_a_line_of_scores_that_waited_is_scored_or_refused_under_the_new_policy(start: StartServer) -> None:
    server, limits = await start(), Limits()
    server.state.rate_limits = limits
    await server.register()
    limits.open = False
    unsteered: dict[str, Any] = {"items": [{"prompt": "a", "choices": ["b", "c"]}], "steering": []}
    own = {**unsteered, "steering": POLICY["mandatory"]}
    job = await started(server, unsteered, own, path="/v1/score/batch")
    await until(lambda: limits.refused)
    policy = {"mandatory": POLICY["mandatory"], "limits": {"own_steering": "none"}}
    assert (await server.client.put("/v1/policy", json=policy)).status_code == 200
    limits.open = True
    await asyncio.wait_for(finished(server, job), 30)
    scored, refused = await output(server, job)
    alone = (await server.client.post("/v1/score", json=unsteered)).json()
    assert scored["response"]["steering"]["fingerprint"] == alone["steering"]["fingerprint"] != ""
    assert scored["response"]["items"] == alone["items"]
    assert refused["error"]["code"] == "insufficient_scope"


@pytest.mark.parametrize("waits_for", ["its key", "the queue"])
async def test_a_line_that_waited_is_answered_under_the_new_policy(start: StartServer, waits_for: str) -> None:
    engine, limits = FullEngine(), Limits()
    server = await start(engine)
    server.state.rate_limits = limits
    assert await is_governed(server, limits if waits_for == "its key" else engine)
    assert limits.charges == 1
