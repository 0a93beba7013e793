"""Tools and thinking on Ollama's routes, with the unmodified ollama package: a form of those of chat completions."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import ollama
import pytest
from ollama import AsyncClient
from transformers import PreTrainedTokenizerFast

from tests.app.conftest import Server, StartServer
from tests.app.core.listening import Listening
from tests.app.openai.test_tools import ANSWERS, CALLED, CLOCK, WEATHER, Speaker, nested, with_parameters
from tests.tool_templates import TEMPLATES, build_thinking_tokenizer

ASK: list[Any] = [{"role": "user", "content": "How is Bern?"}]
TOOLS: list[Any] = [WEATHER, CLOCK]


@asynccontextmanager
async def speaking(family: str | PreTrainedTokenizerFast) -> AsyncIterator[tuple[Speaker, AsyncClient]]:
    """Yields a scripted engine and a client of a server over it."""
    engine = Speaker(family)
    async with Listening(engine) as listening, AsyncClient(host=listening.url) as client:
        yield engine, client


def calls_of(*messages: ollama.Message) -> list[tuple[str, Any]]:
    return [(call.function.name, call.function.arguments) for one in messages for call in one.tool_calls or ()]


@pytest.mark.parametrize("family", TEMPLATES)
async def test_a_tool_is_called_and_its_result_is_read_plain_and_streamed(family: str) -> None:
    async with speaking(family) as (engine, client):
        engine.says = ANSWERS[family]
        answer = await client.chat("tiny", ASK, tools=TOOLS)
        said = "" if family == "llama3_json" else "One moment."
        assert '"description": "Tells the weather."' in engine.read()
        assert (calls_of(answer.message), answer.message.content, answer.done_reason) == (CALLED, said, "stop")
        parts = [part async for part in await client.chat("tiny", ASK, tools=TOOLS, stream=True)]
        assert calls_of(*(part.message for part in parts)) == CALLED
        assert "".join(part.message.content or "" for part in parts) == said
        assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]

        engine.says = "Sunny."
        results = [
            {"role": "tool", "content": "twelve", "tool_name": "clock"},
            {"role": "tool", "content": "sunny, 21 degrees"},
        ]
        messages = [*ASK, answer.message, *results]
        last = await client.chat("tiny", messages, tools=TOOLS)
        assert (last.message.content, last.message.tool_calls) == ("Sunny.", None)
        for shown in (
            "twelve",
            "sunny, 21 degrees",
            '{"city": "Bern"' if family != "llama3_json" else '"city": "Bern"',
        ):
            assert shown in engine.read()


@pytest.mark.parametrize("opened", [False, True])
async def test_thinking_is_a_field_of_its_own(opened: bool) -> None:
    async with speaking(build_thinking_tokenizer("hermes", "think", opened=opened)) as (engine, client):
        engine.says = f"{'' if opened else '<think>'}\nA call?\n</think>\n\n{ANSWERS['hermes']}"
        for think in (None, True):
            answer = await client.chat("tiny", ASK, tools=TOOLS, think=think)
            assert (answer.message.thinking, answer.message.content) == ("A call?", "One moment.")
            assert calls_of(answer.message) == CALLED
        parts = [part async for part in await client.chat("tiny", ASK, tools=TOOLS, stream=True)]
        assert "".join(part.message.thinking or "" for part in parts) == "A call?"
        await client.chat("tiny", [*ASK, answer.message, {"role": "tool", "content": "12", "tool_name": "clock"}])
        assert "<think>A call?</think>" in engine.read()
        engine.says = f"{'' if opened else '<think>'}So.</think>Yes."
        generated = await client.generate("tiny", "Hello", think=True)
        assert (generated.thinking, generated.response) == ("So.", "Yes.")
        streamed = [part async for part in await client.generate("tiny", "Hello", stream=True)]
        assert "".join(part.thinking or "" for part in streamed) == "So."
        raw = await client.generate("tiny", "Hello", raw=True)
        assert (raw.thinking, raw.response) == (None, engine.says)
        assert (await client.show("tiny")).capabilities == ["completion", "tools", "thinking"]


CALLS = {"role": "assistant", "tool_calls": [{"function": {"name": "clock", "arguments": {}}}]}
RESULT = {"role": "tool", "content": "12"}


UNUSABLE: list[tuple[dict[str, Any], str]] = [
    ({"tools": [CLOCK, CLOCK]}, "two functions of one name"),
    (with_parameters(nested(34)), "tools.0.function.parameters"),
    ({"tools": [{"type": "web"}]}, "tools.0.type"),
    ({"tools": [CLOCK], "format": "json"}, "cannot call tools (format)"),
    ({"messages": [*ASK, RESULT]}, "messages.1.tool_name"),
    ({"messages": [*ASK, CALLS, RESULT, RESULT]}, "messages.3.tool_name"),
    ({"messages": [*ASK, CALLS, {**RESULT, "tool_name": "weather"}]}, "messages.2.tool_name"),
    ({"messages": [*ASK, CALLS]}, "only a text is continued"),
    ({"messages": [{**ASK[0], "tool_calls": CALLS["tool_calls"]}]}, "'tool_calls' belongs to messages of role"),
    ({"messages": [{"role": "user"}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": None}]}, "'content' is null only"),
    ({"messages": [{**ASK[0], "tool_name": "clock"}]}, "'tool_name' belongs to messages of role 'tool'"),
    ({"think": True}, "model 'tiny' does not think"),
]


async def test_what_cannot_be_used_is_refused_by_name(start: StartServer) -> None:
    engine = Speaker("hermes")
    server = await start(engine)
    for fields, says in UNUSABLE:
        answer = await server.client.post("/api/chat", json={"model": "tiny", "messages": ASK, **fields})
        error = answer.json()
        assert answer.status_code == 400, answer.text
        assert says in f"{error['error']} ({error['param']})"
        assert engine.requests == []


async def test_a_model_without_tools_is_named(server: Server) -> None:
    answer = await server.client.post("/api/chat", json={"model": "scripted", "messages": ASK, "tools": TOOLS})
    assert (answer.json()["code"], answer.json()["param"]) == ("unsupported_parameter", "tools")
    assert json.loads((await server.client.post("/api/show", json={"model": "scripted"})).text)["capabilities"] == [
        "completion"
    ]
