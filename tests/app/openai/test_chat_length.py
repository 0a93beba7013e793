"""Chat completions: one that names no limit of tokens ends by itself, at the context, or at the operator's limit; the values of fields."""

from dataclasses import replace
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from app.api.conversation import call_of_text
from steering.engine.options import EngineLimits
from steering.engine.transformers.engine import TransformersEngine
from steering.model.loading import opened
from steering.spec import TokenScope
from tests.app.conftest import Server, StartServer
from tests.fakes import ScriptedEngine
from tests.families import EOS
from tests.narrowing import present
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


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"messages": [{"role": "user", "content": "a" * 200}]}, "messages"),
        ({"max_completion_tokens": 200}, "max_completion_tokens"),
        ({"max_tokens": 200}, "max_tokens"),
        ({"logprobs": True, "top_logprobs": 500}, "top_logprobs"),
    ],
)
async def test_an_error_names_the_field_that_was_sent(start: StartServer, changes: dict[str, Any], param: str) -> None:
    server = await start(ScriptedEngine(info=replace(SCRIPTED_MODEL, context_length=100)))
    answer = await server.client.post("/v1/chat/completions", json={**CHAT, **changes})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_more_answers_than_a_server_has_rows_are_refused_for_good(start: StartServer) -> None:
    server = await start(max_running=2, max_waiting=2)
    answer = await server.client.post("/v1/chat/completions", json={**CHAT, "n": 5})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "n")
    assert "takes 5 rows at once; this server has 4" in answer.json()["error"]["message"]
    assert (await server.client.post("/v1/chat/completions", json={**CHAT, "n": 4})).status_code == 200


async def test_values_that_openai_allows(start: StartServer) -> None:
    server = await start()
    for changes in ({"seed": -1}, {"top_p": 0}):
        answer = await server.client.post("/v1/chat/completions", json={**CHAT, **changes})
        assert answer.status_code == 200, answer.text
    (one, other) = server.scripted.requests
    assert one.sampling.seed == 2**63 - 1
    assert 0.0 < other.sampling.top_p < 1e-5
    refused = await server.client.post("/v1/chat/completions", json={**CHAT, "stream_options": {"include_usage": True}})
    assert (refused.status_code, "'stream': true" in refused.text) == (400, True)
    assert TokenScope.model_validate({"roles": ["developer"]}).roles == ("system",), "whose message it becomes"
    assert call_of_text("id", "name", "", "messages").arguments == {}, "some servers write no arguments"


async def test_the_reported_seed_repeats_the_answers_to_all_prompts(start: StartServer) -> None:
    server = await start()
    body = {"model": "scripted", "prompt": ["a", "a", "b"], "n": 2, "max_tokens": 1}
    seed = (await server.client.post("/v1/completions", json=body)).json()["seed"]
    drawn = [request.sampling.seed for request in server.scripted.requests]
    assert (drawn[0], len(set(drawn))) == (seed, 6), "answers to equal prompts differ, too"
    await server.client.post("/v1/completions", json={**body, "seed": seed})
    assert [request.sampling.seed for request in server.scripted.requests[6:]] == drawn


async def test_it_ends_where_the_cache_is_full(
    start: StartServer, tiny_model: PreTrainedModel, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    loaded = opened(tiny_model, hf_byte_tokenizer, name="scripted")
    server = await start(TransformersEngine(loaded, EngineLimits(cache_bytes=1 << 15)))
    longest = present(server.engine.stats().longest)
    assert longest < loaded.info.context_length
    usage = (await server.client.post("/v1/chat/completions", json={**CHAT, "logit_bias": {str(EOS): -100}})).json()[
        "usage"
    ]
    assert usage["total_tokens"] == longest
    asked = await server.client.post("/v1/chat/completions", json={**CHAT, "max_tokens": longest})
    assert asked.status_code == 507, "what a caller asks for is not made smaller"
