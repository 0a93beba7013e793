"""Tools and thinking on POST /v1/messages, with the unmodified anthropic package: a form of those of chat completions."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import pytest
from anthropic import AsyncAnthropic
from transformers import PreTrainedTokenizerFast

from tests.app.conftest import Server, StartServer
from tests.app.core.listening import Listening
from tests.app.openai.test_tools import ANSWERS, CALLED, SCHEMA, Speaker, nested, tiny
from tests.tool_templates import TEMPLATES, build_thinking_tokenizer

ASK: list[Any] = [{"role": "user", "content": "How is Bern?"}]
TOOLS: list[Any] = [
    {"name": "weather", "description": "Tells the weather.", "input_schema": SCHEMA, "cache_control": {"type": "ephemeral"}},
    {"name": "clock", "input_schema": {"type": "object"}},
]  # fmt: skip
ASKED: dict[str, Any] = {"model": "tiny", "max_tokens": 400, "messages": ASK, "tools": TOOLS}


@asynccontextmanager
async def speaking(family: str | PreTrainedTokenizerFast) -> AsyncIterator[tuple[Speaker, AsyncAnthropic]]:
    """Yields a scripted engine and a client of a server over it."""
    engine = Speaker(family)
    async with (
        Listening(engine) as listening,
        AsyncAnthropic(base_url=listening.url, api_key="none", max_retries=0) as client,
    ):
        yield engine, client


def calls_of(message: Any) -> list[tuple[str, Any]]:
    return [(block.name, block.input) for block in message.content if block.type == "tool_use"]


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


@pytest.mark.parametrize("family", TEMPLATES)
async def test_a_tool_is_called_and_its_result_is_read_plain_and_streamed(family: str) -> None:
    async with speaking(family) as (engine, client):
        engine.says = ANSWERS[family]
        message = await client.messages.create(**ASKED)
        assert '"description": "Tells the weather."' in engine.read()
        assert (calls_of(message), message.stop_reason) == (CALLED, "tool_use")
        said = "" if family == "llama3_json" else "One moment."
        assert text_of(message) == said
        async with client.messages.stream(**ASKED) as stream:
            events = [event async for event in stream if event.type not in ("text", "input_json")]
            final = await stream.get_final_message()
        assert (calls_of(final), text_of(final), final.stop_reason) == (CALLED, said, "tool_use")
        kinds = (["text"] if said else []) + ["tool_use"] * 2
        assert [event.content_block.type for event in events if event.type == "content_block_start"] == kinds
        assert [event.index for event in events if event.type == "content_block_stop"] == list(range(len(kinds)))

        engine.says = "Sunny."
        call = next(block for block in final.content if block.type == "tool_use")
        results: list[Any] = [
            {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "sunny, 21 degrees"}]},
            {"type": "tool_result", "tool_use_id": call.id, "is_error": True, "content": "no wind"},
            {"type": "text", "text": "And now?"},
        ]
        messages = [*ASK, {"role": "assistant", "content": final.content}, {"role": "user", "content": results}]
        last = await client.messages.create(**{**ASKED, "messages": messages})
        assert (text_of(last), last.stop_reason) == ("Sunny.", "end_turn")
        for shown in ("sunny, 21 degrees", "Error: no wind", "And now?", '{"city": "Bern", "days": 2}'):
            assert shown in engine.read()
        counted = await client.messages.count_tokens(model="tiny", messages=messages, tools=TOOLS)
        assert counted.input_tokens == last.usage.input_tokens == len(engine.requests[-1].prompt)


@pytest.mark.parametrize("opened", [False, True])
async def test_thinking_is_a_block_before_the_others_and_can_be_sent_back(opened: bool) -> None:
    async with speaking(build_thinking_tokenizer("hermes", "think", opened=opened)) as (engine, client):
        engine.says = f"{'' if opened else '<think>'}\nA call?\n</think>\n\n{ANSWERS['hermes']}"
        asked = {**ASKED, "thinking": {"type": "enabled", "budget_tokens": 1024}}
        message = await client.messages.create(**asked)
        assert [block.type for block in message.content] == ["thinking", "text", "tool_use", "tool_use"]
        thought: Any = message.content[0]
        assert (thought.thinking, thought.signature) == ("A call?", "")
        assert "budget_tokens" in (message.model_extra or {})["steering"]["warnings"][0]
        async with client.messages.stream(**asked) as stream:
            final = await stream.get_final_message()
        assert [block.type for block in final.content] == [block.type for block in message.content]
        assert final.content[0] == thought
        result = {"type": "tool_result", "tool_use_id": message.content[2].id}
        messages = [*ASK, {"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
        await client.messages.create(**{**ASKED, "messages": messages})
        assert "<think>A call?</think>" in engine.read()


async def test_the_choice_is_that_of_chat_completions(start: StartServer) -> None:
    engine = Speaker("hermes")
    engine.says = ANSWERS["hermes"]
    server = await start(engine)
    body = {**ASKED, "seed": 1}
    none = (await server.client.post("/v1/messages", json={**body, "tool_choice": {"type": "none"}})).json()
    assert none["content"] == [{"type": "text", "text": engine.says}]
    assert "weather" not in engine.read()
    one = {"type": "auto", "disable_parallel_tool_use": True}
    single = (await server.client.post("/v1/messages", json={**body, "tool_choice": one})).json()
    assert [block["type"] for block in single["content"]] == ["text", "tool_use"]
    assert "further call of 'clock'" in single["steering"]["warnings"][0]
    engine.says = ""
    empty = (await server.client.post("/v1/messages", json=body)).json()
    assert (empty["content"], empty["stop_reason"]) == ([{"type": "text", "text": ""}], "end_turn")
    held = await start(tiny("hermes"))
    for choice in ({"type": "tool", "name": "clock"}, {"type": "any"}):
        asked = {**body, "tools": TOOLS[1:], "tool_choice": {**choice, "disable_parallel_tool_use": True}}
        asked["tools"] = [{"name": "clock", "input_schema": {"type": "object", "additionalProperties": False}}]
        found = (await held.client.post("/v1/messages", json=asked)).json()
        (block,) = found["content"]
        assert (block["type"], block["name"], block["input"], found["stop_reason"]) == (
            "tool_use",
            "clock",
            {},
            "tool_use",
        )


USE: dict[str, Any] = {"type": "tool_use", "id": "a", "name": "clock", "input": {}}
RESULT: dict[str, Any] = {"type": "tool_result", "tool_use_id": "a", "content": "12"}


def talk(assistant: list[Any], user: list[Any]) -> dict[str, Any]:
    return {"messages": [*ASK, {"role": "assistant", "content": assistant}, {"role": "user", "content": user}]}


UNUSABLE: list[tuple[dict[str, Any], str]] = [
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools of type 'web_search_20250305'"),
    ({"tools": [{**TOOLS[1], "defer_loading": True}]}, "defer_loading is not supported"),
    ({"tools": [TOOLS[1], TOOLS[1]]}, "two functions of one name"),
    ({"tools": [{"name": "f", "input_schema": nested(34)}]}, "tools.0.input_schema"),
    ({"tool_choice": {"type": "tool", "name": "f"}}, "'tools' has weather, clock"),
    ({"tool_choice": {"type": "any", "name": "clock"}}, "belongs to 'type': 'tool'"),
    ({"tool_choice": {"type": "any"}, "tools": []}, "needs 'tools'"),
    ({"tool_choice": {"type": "any"}}, "cannot hold answers"),
    (talk([USE], [{**RESULT, "tool_use_id": "b"}]), "messages.2.content.0.tool_use_id"),
    (talk([USE], [{"type": "text", "text": "x"}, RESULT]), "comes before any text"),
    (talk([RESULT], [RESULT]), "role 'assistant' has no content of type 'tool_result'"),
    (talk([USE], [USE]), "role 'user' has no content of type 'tool_use'"),
    (talk([{"type": "redacted_thinking", "data": "x"}], [RESULT]), "'redacted_thinking'"),
    ({"messages": [*ASK, {"role": "assistant", "content": [USE]}]}, "only a text is continued"),
    ({"messages": [*ASK, {"role": "assistant", "content": "So"}]}, "cannot continue the last message"),
    ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "model 'tiny' does not think"),
]


async def test_what_cannot_be_used_is_refused_by_name(start: StartServer) -> None:
    engine = Speaker("hermes")
    server = await start(engine)
    for fields, says in UNUSABLE:
        answer = await server.client.post("/v1/messages", json={**ASKED, **fields})
        error = answer.json()["error"]
        assert answer.status_code == 400, answer.text
        assert says in error["message"] + (error["param"] or "")
        assert engine.requests == []


async def test_a_model_without_tools_is_named(server: Server) -> None:
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        body = (
            {**ASKED, "model": "scripted"}
            if path == "/v1/messages"
            else {"model": "scripted", "messages": ASK, "tools": TOOLS}
        )
        error = (await server.client.post(path, json=body)).json()["error"]
        assert (error["code"], error["param"]) == ("unsupported_parameter", "tools")


async def test_a_call_that_is_cut_off_is_text_and_tools_count_toward_the_context() -> None:
    async with speaking("hermes") as (engine, client):
        engine.says = ANSWERS["hermes"]
        message = await client.messages.create(**{**ASKED, "max_tokens": 60})
        assert (calls_of(message), message.stop_reason) == ([], "max_tokens")
        assert text_of(message) == engine.says[: len(text_of(message))]
        assert "ends within a call" in (message.model_extra or {})["steering"]["warnings"][0]
        with pytest.raises(anthropic.BadRequestError, match="context holds"):
            await client.messages.create(**{**ASKED, "tools": [{**TOOLS[0], "description": "x" * 60_000}]})
