"""A chat completion that names no limit of tokens ends by itself, at the context, or at the operator's limit."""

from dataclasses import replace
from typing import Any

import pytest

from tests.app.conftest import Server, StartServer
from tests.fakes import ScriptedEngine
from tests.scripted_model import SCRIPTED_MODEL

CHAT = {"model": "scripted", "messages": [{"role": "user", "content": "a"}]}


async def answered(server: Server, **changes: Any) -> tuple[str, int]:
    """Returns why the answer ended, and its tokens."""
    answer = (await server.client.post("/v1/chat/completions", json={**CHAT, **changes})).json()
    return answer["choices"][0]["finish_reason"], answer["usage"]["completion_tokens"]


async def test_it_ends_by_itself(start: StartServer) -> None:
    server = await start(ScriptedEngine(length=300))
    assert await answered(server) == ("stop", 300)
    assert await answered(server, max_tokens=7) == ("length", 7)
    native = (await server.client.post("/v1/generate", json={"prompt": "a"})).json()
    assert native["usage"]["completion_tokens"] == 128, "the default of our own route is unchanged"


@pytest.mark.parametrize(("context", "limit", "tokens"), [(4096, 50, 50), (100, 4096, 100 - len("<user>a\n"))])
async def test_it_ends_at_the_limit_or_at_the_context(
    start: StartServer, context: int, limit: int, tokens: int
) -> None:
    model = replace(SCRIPTED_MODEL, context_length=context)
    server = await start(ScriptedEngine(length=10_000, info=model), chat_max_tokens=limit)
    assert await answered(server) == ("length", tokens)
    assert (await server.client.get("/v1/capabilities")).json()["limits"]["chat_max_tokens"] == limit
