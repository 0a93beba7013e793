"""The unmodified openai package drives the server over a real socket."""

from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from tests.app.core.listening import Listening
from tests.fakes import ScriptedEngine

ASK: list[Any] = [{"role": "user", "content": "Hello"}]
ASCII = {str(token_id): -100 for token_id in range(128, 264)}
"""A bias after which a tiny model of bytes writes whole characters and does not stop."""


async def collected(stream: Any) -> list[Any]:
    """Returns the rest of a stream."""
    return [chunk async for chunk in stream]


async def test_models_are_the_model_and_its_profiles(client: AsyncOpenAI, model: str) -> None:
    listed = [one.id async for one in await client.models.list()]
    assert listed == [model, f"{model}@cheerful"]
    one = await client.models.retrieve(f"{model}@cheerful")
    assert (one.object, one.owned_by) == ("model", "steering-server")
    assert one.model_extra is not None
    assert one.model_extra["profile"] == "cheerful"
    for name in ("gpt-4", f"{model}@nobody", f"{model}@", f"{model}@Not A Name"):
        with pytest.raises(openai.NotFoundError) as refused:
            await client.models.retrieve(name)
        assert refused.value.code == "model_not_found"


async def test_a_chat_completion_has_every_field(client: AsyncOpenAI, model: str) -> None:
    messages: list[Any] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]},
    ]
    asked: dict[str, Any] = {
        "model": model, "messages": messages, "n": 2, "seed": 7, "max_completion_tokens": 3, "presence_penalty": 0.5,
        "frequency_penalty": 0.5, "logit_bias": ASCII,
    }  # fmt: skip
    answer = await client.chat.completions.create(
        **asked, logprobs=True, top_logprobs=2, stop=["zzz"], user="u", metadata={"a": "b"}, store=False,
        service_tier="auto", parallel_tool_calls=True,
    )  # fmt: skip
    assert answer.object == "chat.completion"
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert {choice.finish_reason for choice in answer.choices} == {"length"}
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(token.token for token in logprobs.content) == answer.choices[0].message.content
    assert [len(token.top_logprobs) for token in logprobs.content] == [2, 2, 2]
    assert answer.model_extra is not None
    assert answer.model_extra["seed"] == 7
    record = answer.model_extra["steering"]["record"]["sampling"]
    assert (record["presence_penalty"], record["logit_bias"]["258"]) == (0.5, -100.0)
    again = await client.chat.completions.create(**asked)
    assert [one.message.content for one in again.choices] == [one.message.content for one in answer.choices]


async def test_a_stream_is_the_plain_answer_in_pieces(client: AsyncOpenAI, model: str) -> None:
    asked: dict[str, Any] = {
        "model": f"{model}@cheerful",
        "messages": ASK,
        "seed": 5,
        "n": 2,
        "max_tokens": 4,
        "logit_bias": ASCII,
    }
    plain = await client.chat.completions.create(**asked)
    texts, reasons, usages, last = {0: "", 1: ""}, {}, [], None
    roles = []
    stream = await client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    async for chunk in stream:
        last = chunk
        if chunk.usage is not None:
            usages.append((chunk.usage, len(chunk.choices)))
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            roles += [choice.delta.role] if choice.delta.role else []
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert texts == {choice.index: choice.message.content for choice in plain.choices}
    assert reasons == {choice.index: choice.finish_reason for choice in plain.choices}
    assert roles == ["assistant", "assistant"]
    assert [(usage.completion_tokens, choices) for usage, choices in usages] == [(8, 0)]
    assert last is not None
    assert last.model_extra is not None
    assert [one["vector"] for one in last.model_extra["steering"]["applied"]] == ["mood@1"]


async def test_a_stop_string_ends_an_answer_before_it(client: AsyncOpenAI, model: str) -> None:
    asked: dict[str, Any] = {"model": model, "messages": ASK, "max_tokens": 12, "temperature": 0, "logit_bias": ASCII}
    whole = (await client.chat.completions.create(**asked)).choices[0].message.content or ""
    stop = whole[5:8]
    stopped = await client.chat.completions.create(**asked, stop=[stop])
    assert (stopped.choices[0].finish_reason, stopped.choices[0].message.content) == ("stop", whole.split(stop)[0])
    pieces = await collected(await client.chat.completions.create(**asked, stop=[stop], stream=True))
    assert "".join(one.choices[0].delta.content or "" for one in pieces) == whole.split(stop)[0]
    assert pieces[-1].choices[0].finish_reason == "stop"


async def test_the_last_chunk_without_usage_has_the_steering(
    listening: Listening, client: AsyncOpenAI, model: str
) -> None:
    stream = await client.chat.completions.create(model=model, messages=ASK, max_tokens=2, stream=True)
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices[0].finish_reason is not None
    assert (chunks[-1].model_extra or {})["steering"]["applied"] == []
    raw = await client.post(
        "/chat/completions", body={"model": model, "messages": ASK, "max_tokens": 2, "stream": True},
        cast_to=openai._legacy_response.HttpxBinaryResponseContent,
    )  # fmt: skip
    assert raw.text.rstrip().endswith("data: [DONE]")


async def test_steering_in_the_body_follows_the_profile_of_the_model(client: AsyncOpenAI, model: str) -> None:
    extra = {"steering": [{"vector": "mood", "strength": -1.0}]}
    answer = await client.chat.completions.create(
        model=f"{model}@cheerful", messages=ASK, max_tokens=2, extra_body=extra
    )
    applied = (answer.model_extra or {})["steering"]["applied"]
    assert [one["strength"] for one in applied] == [0.5, -1.0]
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(
            model=f"{model}@cheerful", messages=ASK, extra_body={"steering": {"profile": "cheerful"}}
        )
    assert refused.value.param == "steering"


CALLED = [
    *ASK,
    {
        "role": "assistant",
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    },
    {"role": "tool", "content": "x", "tool_call_id": "1"},
]
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "unsupported_parameter", "tools"),
    ({"extra_body": {"audio": {"voice": "a", "format": "wav"}}}, "unsupported_parameter", "audio"),
    ({"extra_body": {"prediction": {"type": "content", "content": "x"}}}, "unsupported_parameter", "prediction"),
    ({"reasoning_effort": "high"}, "unsupported_parameter", "reasoning_effort"),
    ({"extra_body": {"chat_template": "x"}}, "invalid_request", "chat_template"),
    ({"extra_body": {"steering": [{"vector": "mood", "color": 1}]}}, "invalid_request", "steering.0.color"),
    ({"top_logprobs": 3}, "invalid_request", ""),
    ({"n": 9}, "limit_exceeded", "n"),
    ({"stop": ["a"] * 5}, "limit_exceeded", "stop"),
    ({"logprobs": True, "top_logprobs": 21}, "limit_exceeded", "top_logprobs"),
    ({"temperature": 3}, "invalid_request", "temperature"),
    ({"max_tokens": 100_000}, "context_length_exceeded", "max_tokens"),
    ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "invalid_request", ""),
    ({"messages": CALLED}, "unsupported_parameter", ""),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a"}}]}]}, "unsupported_parameter", "messages"),
]  # fmt: skip


async def test_what_would_change_an_answer_is_refused_by_name(client: AsyncOpenAI, model: str) -> None:
    for changes, code, param in REFUSED:
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(**{"model": model, "messages": ASK, **changes})
        assert refused.value.code == code
        if param:
            assert refused.value.param == param
        assert refused.value.response.headers["x-request-id"]


async def test_neutral_values_of_unsupported_fields_are_accepted(client: AsyncOpenAI, model: str) -> None:
    answer = await client.chat.completions.create(
        model=model, messages=[*ASK, {"role": "assistant", "content": "Hi", "refusal": None}, *ASK], max_tokens=1,
        tools=[], response_format={"type": "text"}, modalities=["text"], tool_choice="none",
    )  # fmt: skip
    assert answer.choices[0].finish_reason in {"length", "stop"}


async def test_failures_reach_the_client_by_class_and_code() -> None:
    engine = ScriptedEngine()
    async with (
        Listening(engine) as listening,
        AsyncOpenAI(base_url=f"{listening.url}/v1", api_key="x", max_retries=0) as client,
    ):
        with pytest.raises(openai.NotFoundError) as missing:
            await client.chat.completions.create(
                model="scripted", messages=ASK, extra_body={"steering": [{"vector": "x"}]}
            )
        assert missing.value.code == "vector_not_found"
        engine.failure, engine.fail_at = ValueError("secret"), 2
        with pytest.raises(openai.InternalServerError) as broken:
            await client.chat.completions.create(model="scripted", messages=ASK)
        assert "secret" not in str(broken.value)
        stream = await client.chat.completions.create(model="scripted", messages=ASK, stream=True)
        first = await anext(aiter(stream))
        with pytest.raises(openai.APIError) as cut:
            await collected(stream)
        assert cut.value.code == "internal_error"
        assert first.choices[0].delta.role == "assistant"
