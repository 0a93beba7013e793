"""What a model thinks before it answers is `reasoning_content` of POST /v1/chat/completions, with the unmodified `openai` client."""

from typing import Any

import pytest

from tests.app.conftest import StartServer
from tests.app.openai.test_structured_output import FORMAT
from tests.app.openai.test_tools import ASK, TOOLS, Speaker, calls_of, speaking, tiny
from tests.narrowing import present
from tests.tool_templates import THINKING, build_thinking_tokenizer


@pytest.mark.parametrize(("thinking", "opened"), [("think", False), ("think", True), ("mistral", False)])
async def test_thoughts_are_apart_from_text_and_calls_plain_and_streamed(thinking: str, opened: bool) -> None:
    family = "mistral" if thinking == "mistral" else "hermes"
    begin, end = THINKING[thinking]
    call = '{"name": "clock", "arguments": {}}'
    call = f"[TOOL_CALLS][{call}]" if family == "mistral" else f"<tool_call>{call}</tool_call>"
    async with speaking(build_thinking_tokenizer(family, thinking, opened=opened)) as (engine, client):
        engine.says = f"{'' if opened else begin}\nA call? Yes.\n{end}\n\nLet me see.{call}"
        answer = await client.chat.completions.create(**TOOLS, stop="Th")
        message: Any = answer.choices[0].message
        assert message.reasoning_content == "A call? Yes."
        assert (message.content, calls_of(message)) == ("Let me see.", [("clock", {})])
        stream = await client.chat.completions.create(**TOOLS, stream=True)
        deltas: list[Any] = [chunk.choices[0].delta async for chunk in stream]
        assert "".join(getattr(one, "reasoning_content", None) or "" for one in deltas) == "A call? Yes."
        assert "".join(one.content or "" for one in deltas) == "Let me see."
        assert sum(len(one.tool_calls or ()) for one in deltas) == 2

        result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "12"}
        await client.chat.completions.create(**{**TOOLS, "messages": [*ASK["messages"], message, result]})
        assert f"{begin}A call? Yes.{end}" in engine.read()


async def test_thinking_that_does_not_end_is_all_there_is() -> None:
    async with speaking(build_thinking_tokenizer("hermes", "think", opened=True)) as (engine, client):
        engine.says = "So many thoughts"
        answer = await client.chat.completions.create(**ASK, max_tokens=7, n=2, logprobs=True)
        for choice in answer.choices:
            message: Any = choice.message
            assert (message.reasoning_content, message.content, choice.finish_reason) == ("So many", "", "length")
            assert choice.logprobs is not None
            assert len(choice.logprobs.content or ()) == 7
        assert present(present(answer.usage).completion_tokens_details).reasoning_tokens == 14


async def test_the_reasoning_of_another_role_is_refused_and_a_plain_answer_has_none(start: StartServer) -> None:
    engine = Speaker(build_thinking_tokenizer("hermes", "think", opened=False))
    engine.says = "Just <think> text."
    server = await start(engine)
    answer = await server.client.post("/v1/chat/completions", json=ASK)
    assert answer.json()["choices"][0]["message"] == {"role": "assistant", "content": engine.says, "refusal": None}
    assert (await server.client.get("/v1/capabilities")).json()["thinking"] == "think"
    wrong = {**ASK, "messages": [{"role": "user", "content": "Hi", "reasoning_content": "x"}]}
    error = (await server.client.post("/v1/chat/completions", json=wrong)).json()["error"]
    assert "'reasoning_content' belongs to messages of role 'assistant'" in error["message"]


OFF: list[tuple[str, dict[str, Any], str]] = [
    (
        "/v1/chat/completions",
        {"chat_template_kwargs": {"enable_thinking": False}},
        "chat_template_kwargs.enable_thinking",
    ),
    ("/v1/chat/completions", {"reasoning_effort": "none"}, "reasoning_effort"),
    ("/v1/responses", {"input": "Hi", "reasoning": {"effort": "none"}}, "reasoning.effort"),
    ("/v1/messages", {"max_tokens": 40, "thinking": {"type": "disabled"}}, "thinking"),
    ("/api/chat", {"think": False, "stream": False}, "think"),
    ("/api/generate", {"prompt": "Hi", "think": False, "stream": False}, "think"),
]


def body_of(fields: dict[str, Any]) -> dict[str, Any]:
    own = {"input", "prompt"} & fields.keys()
    return {"model": "tiny", **({} if own else {"messages": ASK["messages"]}), **fields}


@pytest.mark.parametrize(("path", "fields", "param"), OFF)
async def test_thinking_is_switched_as_each_client_says_it_or_refused_by_name(
    start: StartServer, path: str, fields: dict[str, Any], param: str
) -> None:
    engine = Speaker(build_thinking_tokenizer("hermes", "think", opened=False, switch=True))
    engine.says = "Just so."
    server = await start(engine)
    known = (await server.client.get("/v1/capabilities")).json()
    assert (known["thinking_is_optional"], known["phases"]) == (True, ["answer", "prompt", "thinking", "tool"])
    (name, off) = next((name, value) for name, value in fields.items() if name not in ("input", "prompt", "max_tokens"))
    on: dict[str, Any] = {
        "chat_template_kwargs": {"thinking": True}, "reasoning_effort": "high", "reasoning": {"effort": "low"},
        "thinking": {"type": "enabled"}, "think": True,
    }  # fmt: skip
    for value, ends in ((off, "<think></think>"), (on[name], "<|assistant|>\n")):
        answer = await server.client.post(path, json=body_of({**fields, name: value}))
        assert answer.status_code == 200, answer.text
        assert engine.read().endswith(ends)
        levels = [one for one in answer.json()["steering"]["warnings"] if "no levels of thinking" in one]
        assert len(levels) == (value in ("high", {"effort": "low"}))
    for thinks, value, says in ((True, off, "nothing keeps model 'tiny'"), (False, on[name], "does not think")):
        fixed = build_thinking_tokenizer("hermes", "think", opened=False) if thinks else "hermes"
        refused = await (await start(Speaker(fixed))).client.post(path, json=body_of({**fields, name: value}))
        assert refused.status_code == 400
        assert says in refused.text
        assert param.partition(".")[0] in refused.text
        free = await (await start(Speaker("hermes"))).client.post(path, json=body_of({**fields, name: off}))
        assert free.status_code == 200, free.text


async def test_contradictory_switches_are_refused(start: StartServer) -> None:
    server = await start(Speaker(build_thinking_tokenizer("hermes", "think", opened=False, switch=True)))
    both = {**ASK, "reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}}
    assert "different things" in (await server.client.post("/v1/chat/completions", json=both)).text
    other = {**ASK, "chat_template_kwargs": {"add_vision_id": True}}
    assert "chat_template_kwargs.add_vision_id" in (await server.client.post("/v1/chat/completions", json=other)).text
    raw = {"model": "tiny", "prompt": "Hi", "raw": True, "think": False}
    assert "'raw' takes no 'think'" in (await server.client.post("/api/generate", json=raw)).text


async def test_an_answer_that_must_match_a_grammar_does_not_think(start: StartServer) -> None:
    server = await start(tiny(build_thinking_tokenizer("hermes", "think", opened=True)))
    asked = {**ASK, "response_format": FORMAT, "max_tokens": 200}
    message = (await server.client.post("/v1/chat/completions", json=asked)).json()["choices"][0]["message"]
    assert message["content"].startswith("{")
    assert "reasoning_content" not in message
    free = (await server.client.post("/v1/chat/completions", json={**ASK, "max_tokens": 5})).json()
    assert free["choices"][0]["message"]["content"] == ""
