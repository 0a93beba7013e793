"""Tools on POST /v1/chat/completions, with the unmodified `openai` client: scripted answers, and tiny models that must call."""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel
from transformers import PreTrainedTokenizerFast

from steering.engine.answers import Answer, advance, finish
from steering.engine.api import Finish, GenerationRequest, TokenEvent
from steering.engine.transformers.engine import TransformersEngine
from steering.injection.rows import SteeringReport
from steering.model.loading import opened
from steering.model.prompt import ModelTokenizer
from tests.app.conftest import Server, StartServer
from tests.app.core.listening import Listening
from tests.app.policy.conftest import directions
from tests.contracts.engines import unclosed
from tests.docs.test_bodies import blocks
from tests.fakes import ScriptedEngine
from tests.families import FAMILIES
from tests.scripted_model import SCRIPTED_MODEL
from tests.tool_templates import TEMPLATES, build_tool_tokenizer

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Bern", "Oslo"]}, "days": {"$ref": "#/$defs/days"}},
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "description": "Tells the weather.", "parameters": SCHEMA},
}
CLOCK: dict[str, Any] = {"type": "function", "function": {"name": "clock"}}
ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "How is Bern?"}], "seed": 3}
TOOLS: dict[str, Any] = {**ASK, "tools": [WEATHER, CLOCK]}
ANSWERS = {
    "hermes": 'One moment.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Bern", "days": 2}}\n</tool_call>\n'
    '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>',
    "llama3_json": '{"name": "weather", "parameters": {"city": "Bern", "days": 2}}; {"name": "clock", "parameters": {}}',
    "mistral": 'One moment.[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Bern", "days": 2}}, '
    '{"name": "clock", "arguments": {}}]',
}
CALLED = [("weather", {"city": "Bern", "days": 2}), ("clock", {})]


class Speaker(ScriptedEngine):
    """Answers `says`, a token at a time, by the tokenizer of a family. A monitor ends it after `watched` tokens."""

    def __init__(self, family: str | PreTrainedTokenizerFast) -> None:
        super().__init__(info=replace(SCRIPTED_MODEL, name="tiny", vocab_size=280))
        self.family = build_tool_tokenizer(family) if isinstance(family, str) else family
        self.says = ""
        self.watched: int | None = None
        self.tokenizer: Any = ModelTokenizer(self.family, vocab_size=280)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        """See Engine.generate. Stop strings are those of the engines."""
        self.requests.append(request)
        prompt = list(self.tokenizer.encode(request.prompt))
        row = Answer(ids=prompt, prompt_length=len(prompt), plan=request.plan, sampling=request.sampling)
        row.decoder = self.tokenizer.decode_stream()
        says = self.family.backend_tokenizer.encode(self.says, add_special_tokens=False).ids
        size = request.sampling.max_tokens if self.watched is None else self.watched
        count = 0
        for count, token in enumerate(says[:size], start=1):
            yield TokenEvent(count - 1, token, advance(row, token), logprob=-1.0)
            if row.stop is not None:
                break
        cut = "length" if self.watched is None else "monitor"
        reason: Any = cut if len(says) > size and row.stop is None else "stop"
        done = Finish(reason, len(prompt), count, 0, SteeringReport(), row.stop)
        yield TokenEvent(count, -1, finish(row), finish=done)

    def read(self) -> str:
        """Returns the last prompt, with its control tokens."""
        text: str = self.family.decode(self.requests[-1].prompt)
        return text


@asynccontextmanager
async def speaking(family: str | PreTrainedTokenizerFast) -> AsyncIterator[tuple[Speaker, AsyncOpenAI]]:
    """Yields a scripted engine and a client of a server over it."""
    engine = Speaker(family)
    async with (
        Listening(engine) as listening,
        AsyncOpenAI(base_url=f"{listening.url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield engine, client


def calls_of(message: Any) -> list[tuple[str, Any]]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or ()]


async def streamed(client: AsyncOpenAI, **fields: Any) -> tuple[str, list[dict[str, Any]], list[Any]]:
    """Returns the text of the only choice of a stream, its calls as a client joins them, and all chunks."""
    chunks = [chunk async for chunk in await client.chat.completions.create(**fields, stream=True)]
    text, calls = "", list[dict[str, Any]]()
    for chunk in chunks:
        delta = chunk.choices[0].delta
        text += delta.content or ""
        for part in delta.tool_calls or ():
            if part.index == len(calls):
                calls.append({"id": part.id, "name": part.function.name, "arguments": ""})
            calls[part.index]["arguments"] += part.function.arguments or ""
    return text, calls, chunks


@pytest.mark.parametrize("family", TEMPLATES)
async def test_a_tool_is_called_and_its_result_is_read_plain_and_streamed(family: str) -> None:
    async with speaking(family) as (engine, client):
        engine.says = ANSWERS[family]
        answer = await client.chat.completions.create(**TOOLS)
        assert '"description": "Tells the weather."' in engine.read()
        choice = answer.choices[0]
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == (None if family == "llama3_json" else "One moment.")
        assert calls_of(choice.message) == CALLED
        text, calls, chunks = await streamed(client, **TOOLS)
        assert text == (choice.message.content or "")
        assert [(call["name"], json.loads(call["arguments"])) for call in calls] == CALLED
        assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["tool_calls"]
        assert len({call["id"] for call in calls} | {call.id for call in choice.message.tool_calls or ()}) == 4

        engine.says = "Sunny."
        messages = [*ASK["messages"], choice.message]
        for call, result in zip((choice.message.tool_calls or ())[:1], ["sunny, 21 degrees"], strict=False):
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
        last = await client.chat.completions.create(**{**TOOLS, "messages": messages})
        assert (last.choices[0].message.content, last.choices[0].finish_reason) == ("Sunny.", "stop")
        assert last.choices[0].message.tool_calls is None
        assert "sunny, 21 degrees" in engine.read()
        assert '{"city": "Bern", "days": 2}' in engine.read()


async def test_a_call_that_is_not_finished_is_text_with_a_warning() -> None:
    async with speaking("hermes") as (engine, client):
        engine.says = ANSWERS["hermes"]
        for size, count in ((100, 1), (60, 0)):
            answer = await client.chat.completions.create(**TOOLS, max_tokens=size)
            assert answer.choices[0].finish_reason == "length" if not count else "tool_calls"
            assert len(calls_of(answer.choices[0].message)) == count
            content = answer.choices[0].message.content or ""
            assert content.startswith("One moment.")
            assert content.count("<tool_call>") == 1
            (warning,) = (answer.model_extra or {})["steering"]["warnings"]
            assert "ends within a call" in warning
            text, calls, chunks = await streamed(client, **TOOLS, max_tokens=size)
            assert (text, len(calls)) == (content, count)
            assert (chunks[-1].model_extra or {})["steering"]["warnings"] == [warning]


class Weather(BaseModel):
    """Arguments of which the `openai` package makes a tool."""

    city: str
    days: int


async def test_the_helpers_of_the_client_parse_arguments_and_their_messages_can_be_sent_back() -> None:
    async with speaking("hermes") as (engine, client):
        engine.says = '<tool_call>{"name": "Weather", "arguments": {"city": "Bern", "days": 2}}</tool_call>'
        asked = {**ASK, "tools": [openai.pydantic_function_tool(Weather)]}
        async with client.chat.completions.stream(**asked) as stream:
            final = await stream.get_final_completion()
        parsed = await client.chat.completions.parse(**asked)
        engine.says = "Sunny."
        for message in (final.choices[0].message, parsed.choices[0].message):
            assert message.tool_calls is not None
            (call,) = message.tool_calls
            assert call.function.parsed_arguments == Weather(city="Bern", days=2)
            result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
            messages = [*ASK["messages"], message, result]
            last = await client.chat.completions.create(**{**asked, "messages": messages})
            assert last.choices[0].message.content == "Sunny."


async def test_the_request_of_the_page_is_answered(start: StartServer) -> None:
    engine = Speaker("hermes")
    engine.says = '<tool_call>{"name": "weather", "arguments": {"city": "Bern"}}</tool_call>'
    server = await start(engine)
    (block,) = [block for block in blocks("api.md") if '"tool_choice"' in block]
    answer = await server.client.post("/v1/chat/completions", json={**json.loads(block), "model": "tiny"})
    assert answer.json()["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "Bern"}'


async def test_what_the_choice_says_holds() -> None:
    async with speaking("hermes") as (engine, client):
        engine.says = ANSWERS["hermes"]
        none = await client.chat.completions.create(**TOOLS, tool_choice="none")
        assert none.choices[0].message.content == engine.says
        assert "weather" not in engine.read()
        one = await client.chat.completions.create(**TOOLS, parallel_tool_calls=False, n=2)
        assert [calls_of(choice.message) for choice in one.choices] == [CALLED[:1]] * 2
        assert (
            "allows one call of a tool: a further call of 'clock' was left out"
            in (one.model_extra or {})["steering"]["warnings"][0]
        )
        strict = {**WEATHER, "function": {**WEATHER["function"], "strict": True}}
        warned = await client.chat.completions.create(**{**TOOLS, "tools": [strict], "tool_choice": "auto"})
        assert "'strict' of weather" in (warned.model_extra or {})["steering"]["warnings"][0]


@pytest.mark.parametrize("family", TEMPLATES)
async def test_a_text_that_begins_like_a_stop_string_costs_no_call(family: str) -> None:
    """Held back, `T` would come after the marker of the call, which is a token without a text in two of the families."""
    begin = {"hermes": "<tool_call>", "llama3_json": "<|python_tag|>", "mistral": "[TOOL_CALLS]"}[family]
    call = '{"name": "clock", "arguments": {}}'
    async with speaking(family) as (engine, client):
        engine.says = f"It is T{begin}" + (f"[{call}]" if family == "mistral" else call)
        for stop in ("To", "T[", "T{"):
            answer = await client.chat.completions.create(**TOOLS, stop=[stop, "clock is"])
            message = answer.choices[0].message
            assert (message.content, calls_of(message)) == ("It is T", [("clock", {})]), stop
            text, calls, _ = await streamed(client, **TOOLS, stop=[stop])
            assert (text, [one["name"] for one in calls]) == ("It is T", ["clock"])
        stopped = await client.chat.completions.create(**TOOLS, stop="clock")
        assert stopped.choices[0].finish_reason == "stop"
        assert stopped.choices[0].message.tool_calls is None
        assert stopped.choices[0].message.content == engine.says[: engine.says.find("clock")]


async def test_an_answer_that_a_monitor_ends_has_the_calls_that_are_whole() -> None:
    async with speaking("hermes") as (engine, client):
        engine.says, engine.watched = ANSWERS["hermes"], 100
        answer = await client.chat.completions.create(**TOOLS)
        assert (answer.choices[0].finish_reason, calls_of(answer.choices[0].message)) == ("content_filter", CALLED[:1])
        _, calls, chunks = await streamed(client, **TOOLS)
        assert (chunks[-1].choices[0].finish_reason, len(calls)) == ("content_filter", 1)


async def test_log_probabilities_of_a_stream_are_those_of_the_plain_answer() -> None:
    async with speaking("hermes") as (engine, client):
        engine.says = ANSWERS["hermes"]
        plain = await client.chat.completions.create(**TOOLS, logprobs=True)
        assert plain.choices[0].logprobs is not None
        _, calls, chunks = await streamed(client, **TOOLS, logprobs=True)
        listed = [
            token.token
            for chunk in chunks
            if chunk.choices[0].logprobs is not None
            for token in chunk.choices[0].logprobs.content or ()
        ]
        assert listed == [token.token for token in plain.choices[0].logprobs.content or ()]
        assert len(calls) == 2


CALL: dict[str, Any] = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
USER, ASSISTANT = ASK["messages"][0], {"role": "assistant", "tool_calls": [CALL]}


def with_parameters(parameters: dict[str, Any]) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f", "parameters": parameters}}]}


def with_arguments(arguments: str) -> dict[str, Any]:
    call = {**CALL, "function": {"name": "weather", "arguments": arguments}}
    return {"messages": [USER, {"role": "assistant", "tool_calls": [call]}]}


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


UNUSABLE: list[tuple[dict[str, Any], str]] = [
    ({"tools": [CLOCK, CLOCK]}, "two functions of one name"),
    ({"tools": [{"type": "function", "function": {"name": f"f{i}"}} for i in range(129)]}, "128"),
    ({"tools": [{"type": "web_search"}]}, "function"),
    (with_parameters(nested(34)), "deeper than 32 levels"),
    (with_parameters({"enum": list(range(1025))}), "at most 1024"),
    (with_parameters({"description": "x" * 64_000}), "at most 64000"),
    (with_parameters({"type": "string"}), "arguments are an object, the schema has type 'string'"),
    ({"tools": [CLOCK], "tool_choice": {"type": "function", "function": {"name": "f"}}}, "'tools' has clock"),
    ({"tool_choice": "required"}, "needs 'tools'"),
    ({"tools": [CLOCK], "response_format": {"type": "json_object"}}, "cannot call 'tools'"),
    ({"tools": [CLOCK], "tool_choice": "required"}, "cannot hold answers"),
    (
        {"messages": [USER, {"role": "tool", "content": "x", "tool_call_id": "b"}]},
        "no message before it has a call",
    ),
    ({"messages": [USER, {"role": "tool", "content": "x"}]}, "tool_call_id"),
    ({"messages": [{**USER, "tool_call_id": "a"}]}, "tool_call_id"),
    ({"messages": [{**USER, "tool_calls": [CALL]}]}, "not 'user'"),
    ({"messages": [USER, {"role": "assistant"}]}, "messages.1.content"),
    ({"messages": [USER, {"role": "assistant", "content": None}]}, "'content' is null only"),
    ({"messages": [USER, ASSISTANT, {"role": "tool", "tool_call_id": "a"}]}, "messages.2.content"),
    (with_arguments("{"), "not valid JSON"),
    (with_arguments("[]"), "are a JSON object"),
    (with_arguments('{"a": ' * 40 + "1" + "}" * 40), "nested deeper than 32"),
    ({"messages": [USER, ASSISTANT], "continue_final_message": True}, "cannot be combined with tools"),
]


async def test_what_cannot_be_used_is_refused_by_name(start: StartServer) -> None:
    engine = Speaker("hermes")
    server = await start(engine)
    for fields, says in UNUSABLE:
        answer = await server.client.post("/v1/chat/completions", json={**ASK, **fields})
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert says in error["message"] + (error["param"] or "")
        assert len(error["message"]) < 500
        assert engine.requests == []


async def test_arguments_of_calls_are_counted_before_they_are_parsed(start: StartServer) -> None:
    engine = Speaker("hermes")
    server = await start(engine, max_body_elements=500)
    for values, status in ((300, 200), (501, 400)):
        body = {**ASK, **with_arguments(json.dumps({"a": [0] * values})), "max_tokens": 1}
        answer = await server.client.post("/v1/chat/completions", json=body)
        assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("limit_exceeded", "messages")
    assert "arguments of all calls have more than 500" in error["message"]


async def test_what_is_cheap_to_refuse_is_refused_before_schemas_and_arguments_are_read(
    server: Server, start: StartServer
) -> None:
    wrong = {**with_parameters(nested(34)), **with_arguments("{")}
    ask = {**ASK, **wrong, "model": "scripted"}
    error = (await server.client.post("/v1/chat/completions", json=ask)).json()["error"]
    assert "model 'scripted' cannot be given tools" in error["message"]
    tools = await start(Speaker("hermes"))
    for fields, param in (({"stop": ["a"] * 5}, "stop"), ({"model": "other"}, "model"), ({"top_logprobs": 99, "logprobs": True}, "top_logprobs")):  # fmt: skip
        error = (await tools.client.post("/v1/chat/completions", json={**ASK, **wrong, **fields})).json()["error"]
        assert error["param"] == param


@pytest.mark.parametrize("fields", [{"tools": [CLOCK]}, {"messages": [USER, ASSISTANT]}])
async def test_a_model_whose_template_has_no_tools_is_named(server: Server, fields: dict[str, Any]) -> None:
    assert (await server.client.get("/v1/capabilities")).json()["tools"] is None
    answer = await server.client.post("/v1/chat/completions", json={**ASK, "model": "scripted", **fields})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "unsupported_parameter", "tools")
    assert "model 'scripted' cannot be given tools" in error["message"]


def tiny(family: str | PreTrainedTokenizerFast, *, tokens: bool = True) -> TransformersEngine:
    model = FAMILIES["llama"]()
    model.config.max_position_embeddings = 4096
    model.resize_token_embeddings(280, mean_resizing=False)
    tokenizer = build_tool_tokenizer(family, tokens=tokens) if isinstance(family, str) else family
    return TransformersEngine(opened(model, tokenizer, name="tiny"))


NAMED = {"type": "function", "function": {"name": "weather"}}


@pytest.mark.parametrize(
    ("family", "tokens", "choice"),
    [
        ("hermes", True, NAMED),
        ("hermes", False, "required"),
        ("llama3_json", True, "required"),
        ("mistral", True, NAMED),
    ],
)
async def test_an_answer_that_must_call_calls_beside_steering_and_is_replayed(
    start: StartServer, family: str, tokens: bool, choice: Any
) -> None:
    engine = tiny(family, tokens=tokens)
    server = await start(engine)
    assert (await server.client.get("/v1/capabilities")).json()["tools"] == family
    made = {"name": "mood", "directions": directions(engine.info.d_model, 1)}
    assert (await server.client.post("/v1/vectors", json=made)).status_code == 201
    steering = [{"vector": "mood", "layers": "all", "strength": 3.0}]
    ask = {**TOOLS, "max_tokens": 600, "steering": steering, "tool_choice": choice, "parallel_tool_calls": False}
    answer = await server.client.post("/v1/chat/completions", json=ask)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    (one,) = body["choices"]
    (call,) = one["message"]["tool_calls"]
    assert (one["finish_reason"], one["message"]["content"]) == ("tool_calls", None)
    arguments = json.loads(call["function"]["arguments"])
    if call["function"]["name"] == "weather":
        assert arguments["city"] in ("Bern", "Oslo")
        assert 1 <= arguments["days"] <= 9
    else:
        assert (choice, arguments) == ("required", {})
    assert body["steering"]["applied"][0]["vector"] == "mood@1"
    assert body["steering"]["warnings"] == []
    replayed = await server.client.post("/v1/replay", json=body["steering"]["record"])
    assert replayed.status_code == 200, replayed.text
    (again,) = replayed.json()["choices"]
    assert f'"name": "{call["function"]["name"]}"' in again["text"]
    assert again["finish_reason"] == "stop"


async def test_a_stream_that_must_call_is_the_plain_answer_and_several_calls_may_follow() -> None:
    engine = tiny("hermes")
    asked = {**TOOLS, "tools": [CLOCK], "tool_choice": "required", "max_tokens": 400, "temperature": 2.0}
    async with (
        Listening(unclosed(engine)) as listening,
        AsyncOpenAI(base_url=f"{listening.url}/v1", api_key="none", max_retries=0) as client,
    ):
        plain = await client.chat.completions.create(**asked)
        text, calls, _ = await streamed(client, **asked)
        assert text == (plain.choices[0].message.content or "")
        assert [(call["name"], json.loads(call["arguments"])) for call in calls] == calls_of(plain.choices[0].message)
        assert calls
        with pytest.raises(openai.BadRequestError, match="cannot hold the answer to calls of these tools") as refused:
            await client.chat.completions.create(
                **{**asked, **with_parameters({"properties": {"a": {"not": {"type": "string"}}}})}
            )
        assert refused.value.param == "tools"
    await engine.close()


async def test_a_scope_of_roles_knows_results_of_tools(start: StartServer) -> None:
    engine = tiny("hermes")
    server = await start(engine)
    made = {"name": "mood", "directions": directions(engine.info.d_model, 1)}
    await server.client.post("/v1/vectors", json=made)
    messages = [USER, ASSISTANT, {"role": "tool", "tool_call_id": "a", "content": "sunny"}]
    scope = {"tokens": "prompt", "roles": ["tool"]}
    steering = [{"vector": "mood", "layers": "all", "strength": 1.0, "scope": scope}]
    body = {**TOOLS, "messages": messages, "max_tokens": 2, "steering": steering}
    answer = await server.client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["steering"]["applied"][0]["tokens"] == len("sunny")
    assert answer.json()["steering"]["record"]["prompt_roles"].count("tool") == len("sunny")
