"""The unmodified anthropic package drives the server over a real socket: a message is a chat completion in another form."""

from typing import Any

import anthropic
import httpx2
import pytest
from anthropic import AsyncAnthropic

from tests.app.conftest import Server, StartServer, events_of
from tests.app.core.listening import Listening
from tests.app.openai.test_openai_client import collected
from tests.fakes import ScriptedEngine

ASK: list[Any] = [{"role": "user", "content": "Hello"}]
KEY = "sk-right-key-0123456789"
READER = "sk-reader-key-0123456789"


async def chat_of(client: AsyncAnthropic, **body: Any) -> dict[str, Any]:
    """Returns the chat completion of the same server: the reference."""
    answer = await client.post("/v1/chat/completions", body=body, cast_to=httpx2.Response)
    found: dict[str, Any] = answer.json()
    return found


async def test_a_message_is_the_chat_completion_of_the_same_conversation(client: AsyncAnthropic, model: str) -> None:
    sampling: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9, "seed": 7}
    messages: list[Any] = [
        {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Bye"},
    ]  # fmt: skip
    systems: list[Any] = ["Be brief.", [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]]
    for system in systems:
        message = await client.messages.create(
            model=f"{model}@cheerful", max_tokens=5, system=system, messages=messages, metadata={"user_id": "u"},
            service_tier="auto", extra_body=sampling,
        )  # fmt: skip
        chat = await chat_of(
            client, model=f"{model}@cheerful", max_tokens=5, **sampling,
            messages=[{"role": "system", "content": "Be brief."}, *ASK, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "Bye"}],
        )  # fmt: skip
        block: Any = message.content[0]
        assert (message.type, message.role, message.model, block.type) == (
            "message",
            "assistant",
            f"{model}@cheerful",
            "text",
        )
        assert block.text == chat["choices"][0]["message"]["content"]
        assert message.stop_reason == {"length": "max_tokens", "stop": "end_turn"}[chat["choices"][0]["finish_reason"]]
        usage = message.usage
        assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == chat["usage"]["prompt_tokens"]
        assert usage.output_tokens == chat["usage"]["completion_tokens"]
        extra = message.model_extra or {}
        assert (extra["seed"], extra["steering"].keys()) == (7, chat["steering"].keys())
        assert extra["steering"]["record"] == chat["steering"]["record"]
        assert [one["vector"] for one in extra["steering"]["applied"]] == ["mood@1"]


async def test_a_stream_is_the_message_in_events(client: AsyncAnthropic, model: str) -> None:
    asked: dict[str, Any] = {
        "model": model,
        "max_tokens": 6,
        "messages": ASK,
        "extra_body": {"seed": 5, "steering": [{"vector": "mood"}]},
    }
    plain = await client.messages.create(**asked)
    async with client.messages.stream(**asked) as stream:
        events = [event async for event in stream]
        final = await stream.get_final_message()
    assert [event.type for event in events if event.type not in ("content_block_delta", "text")] == [
        "message_start", "content_block_start", "content_block_stop", "message_delta", "message_stop",
    ]  # fmt: skip
    assert final.content[0].text == plain.content[0].text  # type: ignore[union-attr]
    assert (final.stop_reason, final.stop_sequence) == (plain.stop_reason, plain.stop_sequence)
    assert final.usage.output_tokens == plain.usage.output_tokens
    (ending,) = [event for event in events if event.type == "message_delta"]
    assert (ending.model_extra or {})["steering"]["applied"] == (plain.model_extra or {})["steering"]["applied"]
    assert (ending.model_extra or {})["seed"] == 5


async def test_tokens_are_counted_as_a_message_has_them(client: AsyncAnthropic, model: str) -> None:
    for messages in (ASK, [*ASK, {"role": "assistant", "content": "It is"}]):
        counted = await client.messages.count_tokens(model=model, system="Be brief.", messages=messages)
        usage = (await client.messages.create(model=model, system="Be brief.", messages=messages, max_tokens=1)).usage
        assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0) > len("Be brief.Hello")


async def test_a_last_message_of_the_assistant_is_continued(client: AsyncAnthropic, model: str) -> None:
    messages: list[Any] = [*ASK, {"role": "assistant", "content": "It is"}]
    message = await client.beta.messages.create(
        model=model, max_tokens=4, messages=messages, extra_body={"temperature": 0.0}, betas=["some-beta"]
    )
    chat = await chat_of(
        client, model=model, max_tokens=4, temperature=0.0, messages=messages, continue_final_message=True
    )
    assert message.content[0].text == chat["choices"][0]["message"]["content"]  # type: ignore[union-attr]


REFUSED: list[tuple[dict[str, Any], str, str, str]] = [
    ({"tools": [{"name": "f", "input_schema": {"type": "object"}}]}, "unsupported_parameter", "tools", "cannot be given tools"),
    ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "unsupported_parameter", "thinking", "does not think"),
    ({"extra_body": {"container": "x"}}, "unsupported_parameter", "container", "not supported"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://a"}}]}]}, "unsupported_parameter", "content", "'image'"),
    ({"messages": [*ASK, {"role": "assistant", "content": " "}]}, "invalid_request", "messages", "empty"),
    ({"messages": []}, "invalid_request", "messages", "at least 1"),
    ({"messages": [{"role": "user", "content": "x" * 9000}]}, "context_length_exceeded", "messages", ""),
    ({"max_tokens": 0}, "invalid_request", "max_tokens", "at least 1"),
    ({"max_tokens": 20_000}, "context_length_exceeded", "max_tokens", ""),
    ({"stop_sequences": ["a"] * 5}, "limit_exceeded", "stop_sequences", "at most 4"),
    ({"extra_body": {"temperature": 3}}, "invalid_request", "temperature", "at most 2"),
    ({"extra_body": {"chat_template": "x"}}, "invalid_request", "chat_template", "not known"),
    ({"extra_body": {"steering": [{"vector": "mood", "color": 1}]}}, "invalid_request", "steering.0.color", "not known"),
]  # fmt: skip


async def test_what_would_change_an_answer_is_refused_in_the_form_of_the_api(
    client: AsyncAnthropic, model: str
) -> None:
    for changes, code, param, words in REFUSED:
        with pytest.raises(anthropic.BadRequestError) as refused:
            await client.messages.create(**{"model": model, "max_tokens": 4, "messages": ASK, **changes})
        body: Any = refused.value.body
        assert set(body) == {"type", "error"}
        assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
        assert (body["error"]["code"], body["error"]["param"]) == (code, param)
        assert words in body["error"]["message"]


async def test_neutral_values_of_unsupported_fields_are_accepted(client: AsyncAnthropic, model: str) -> None:
    message = await client.messages.create(
        model=model, max_tokens=1, messages=ASK, tools=[], thinking={"type": "disabled"}, speed="standard"
    )
    again = await client.messages.create(
        model=model, max_tokens=1, messages=[*ASK, {"role": "assistant", "content": message.content}, *ASK]
    )
    assert again.usage.output_tokens == 1


async def message_of(server: Server, **changes: Any) -> httpx2.Response:
    """Returns the answer to a message without the client."""
    body = {"model": "scripted", "max_tokens": 12, "messages": ASK, "seed": 3, **changes}
    return await server.client.post("/v1/messages", json=body)


async def test_the_stop_string_that_was_met_is_named(server: Server) -> None:
    text = (await message_of(server)).json()["content"][0]["text"]
    words = text.split(" ")
    first, second = f" {words[4]}", f" {words[6]}"
    cut = min(text.find(first), text.find(second))
    met = first if text.find(first) == cut else second
    stopped = (await message_of(server, stop_sequences=["zzz", second, first])).json()
    assert (stopped["content"][0]["text"], stopped["stop_reason"]) == (text[:cut], "stop_sequence")
    assert stopped["stop_sequence"] == met
    streamed = events_of((await message_of(server, stop_sequences=["zzz", second, first], stream=True)).text)
    (delta,) = [data["delta"] for name, data in streamed if name == "message_delta"]
    assert delta == {"stop_reason": "stop_sequence", "stop_sequence": met}
    ended = (await message_of(server, stop_sequences=["zzz"])).json()
    assert (ended["stop_reason"], ended["stop_sequence"]) == ("end_turn", None)


async def test_a_sampling_field_reaches_the_engine(server: Server) -> None:
    await message_of(server, temperature=0.25, top_p=0.5, top_k=9, stop_sequences=["x", "y"])
    sampling = server.scripted.requests[-1].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.stop) == (0.25, 0.5, 9, ("x", "y"))
    assert (sampling.max_tokens, sampling.seed) == (12, 3)


async def test_an_answer_that_a_monitor_stops_is_a_refusal(server: Server) -> None:
    await server.register("mood")
    monitor = {"name": "watch", "vector": "mood", "above": 0.0, "action": "stop"}
    assert (await server.client.put("/v1/policy", json={"monitors": [monitor]})).status_code == 200
    stopped = (await message_of(server)).json()
    assert (stopped["stop_reason"], stopped["flags"][0]["monitor"]) == ("refusal", "watch")
    streamed = events_of((await message_of(server, stream=True)).text)
    (delta,) = [data for name, data in streamed if name == "message_delta"]
    assert (delta["delta"]["stop_reason"], delta["flags"]) == ("refusal", stopped["flags"])


async def test_failures_reach_the_client_by_class_and_code() -> None:
    engine = ScriptedEngine()
    async with (
        Listening(engine) as listening,
        AsyncAnthropic(base_url=listening.url, api_key="x", max_retries=0) as client,
    ):
        asked: dict[str, Any] = {"model": "scripted", "max_tokens": 8, "messages": ASK}
        with pytest.raises(anthropic.NotFoundError) as missing:
            await client.messages.create(**{**asked, "model": "claude-unknown"})
        assert "'scripted'" in str(missing.value)
        with pytest.raises(anthropic.NotFoundError) as missing:
            await client.messages.count_tokens(model="scripted@nobody", messages=ASK)
        assert "model_not_found" in str(missing.value)
        engine.failure, engine.fail_at = ValueError("secret"), 2
        with pytest.raises(anthropic.InternalServerError) as broken:
            await client.messages.create(**asked)
        body: Any = broken.value.body
        assert (body["error"]["type"], body["error"]["code"]) == ("api_error", "internal_error")
        assert "secret" not in str(broken.value)
        stream = await client.messages.create(**asked, stream=True)
        received = [(await anext(stream)).type for _ in range(3)]
        assert received == ["message_start", "content_block_start", "content_block_delta"]
        with pytest.raises(anthropic.APIStatusError) as cut:
            await collected(stream)
        body = cut.value.body
        assert (body["type"], body["error"]["type"], body["error"]["code"]) == ("error", "api_error", "internal_error")


async def test_the_key_is_taken_in_either_header_and_once(start: StartServer) -> None:
    server = await start(api_keys=f"{KEY},{READER}:read")
    bearer = {"authorization": f"Bearer {KEY}"}

    async def asked(headers: Any, path: str = "/v1/messages") -> tuple[int, dict[str, Any]]:
        body = {"model": "scripted", "max_tokens": 1, "messages": ASK}
        answer = await server.client.post(path, json=body, headers=headers)
        return answer.status_code, answer.json()

    for headers in (bearer, {"x-api-key": KEY}, {"X-Api-Key": KEY}):
        assert (await asked(headers))[0] == 200
    twice = httpx2.Headers([("x-api-key", KEY), ("x-api-key", KEY)])
    for wrong in ({}, {"x-api-key": "wrong"}, {"x-api-key": ""}, {"x-api-key": f"Bearer {KEY}"}, {**bearer, "x-api-key": KEY}, twice):  # fmt: skip
        status, body = await asked(wrong)
        assert (status, body["type"], body["error"]["type"]) == (401, "error", "authentication_error")
    status, body = await asked({"x-api-key": READER})
    assert (status, body["error"]["type"], body["error"]["code"]) == (403, "permission_error", "insufficient_scope")
    assert (await asked({"x-api-key": KEY}, "/v1/chat/completions"))[0] == 401, "on these routes only"


async def test_a_key_in_the_other_header_has_its_limits_and_is_counted(start: StartServer) -> None:
    server = await start(api_keys=f"{KEY}:admin+metrics")
    admin = {"authorization": f"Bearer {KEY}"}
    fields = {"name": "limited", "scopes": ["generate"], "limits": {"tokens_per_minute": 40}}
    key = (await server.client.post("/v1/keys", json=fields, headers=admin)).json()
    headers, body = {"x-api-key": key["key"]}, {"model": "scripted", "max_tokens": 10, "messages": ASK}
    assert (await server.client.post("/v1/messages", json=body, headers=headers)).status_code == 200
    count = {"model": "scripted", "messages": [{"role": "user", "content": "a" * 30}]}
    for path, asked in (("/v1/messages", {**body, "max_tokens": 30}), ("/v1/messages/count_tokens", count)):
        refused = await server.client.post(path, json=asked, headers=headers)
        assert (refused.status_code, refused.json()["error"]["type"]) == (429, "rate_limit_error"), refused.text
    metrics = (await server.client.get("/metrics", headers=admin)).text
    assert f'steering_key_refusals_total{{key="{key["id"]}",reason="tokens"}} 2.0' in metrics


async def test_every_refusal_before_the_body_has_the_form_of_the_api(server: Server) -> None:
    requests: list[tuple[str, dict[str, Any], int, str]] = [
        ("GET", {}, 405, "invalid_request_error"),
        ("POST", {"content": b"{"}, 415, "invalid_request_error"),
        ("POST", {"content": b"{", "headers": {"content-type": "application/json"}}, 400, "invalid_request_error"),
        ("POST", {"content": b" " * (server.state.settings.max_body_bytes + 1)}, 413, "request_too_large"),
        ("POST", {"json": {}, "headers": {"host": "elsewhere"}}, 403, "permission_error"),
    ]
    missing = (await server.client.post("/v1/messages/batches", json={})).json()
    assert (missing["type"], missing["error"]["type"]) == ("error", "not_found_error")
    for method, options, status, kind in requests:
        answer = await server.client.request(method, "/v1/messages", **options)
        assert (answer.status_code, answer.json()["type"], answer.json()["error"]["type"]) == (status, "error", kind)
