"""POST /v1/responses with the unmodified `openai` package: a response is a chat completion in another form."""

import json
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel
from transformers import PreTrainedTokenizerFast

from app.api.responses_schemas import ResponsesRequest
from steering.engine.transformers.engine import TransformersEngine
from steering.errors import InvalidRequest
from steering.model.loading import opened
from tests.app.conftest import Server, events_of
from tests.app.core.listening import Listening
from tests.app.openai.test_openai_client import collected
from tests.app.openai.test_structured_output import Mood
from tests.app.openai.test_tools import ANSWERS, CALLED, SCHEMA, speaking
from tests.fakes import ScriptedEngine
from tests.families import FAMILIES
from tests.tool_templates import TEMPLATES, build_thinking_tokenizer

WEATHER: Any = {"type": "function", "name": "weather", "description": "Tells the weather.", "parameters": SCHEMA, "strict": None}  # fmt: skip
CLOCK: Any = {"type": "function", "name": "clock", "parameters": None, "strict": None}
TOOLS: dict[str, Any] = {"model": "tiny", "input": "How is Bern?", "tools": [WEATHER, CLOCK], "extra_body": {"seed": 3}}


def extras(response: Any) -> dict[str, Any]:
    return response.model_extra or {}


async def test_a_response_is_the_chat_completion_of_the_same_conversation(client: AsyncOpenAI, model: str) -> None:
    said = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [{"type": "output_text", "text": "Hi", "annotations": []}]}  # fmt: skip
    spoken: list[Any] = [
        {"role": "user", "content": [{"type": "input_text", "text": "Hel"}, {"type": "input_text", "text": "lo"}]},
        said,
        {"role": "user", "content": "Bye", "type": "message"},
    ]
    response = await client.responses.create(
        model=f"{model}@cheerful", instructions="Be brief.", input=spoken, max_output_tokens=5, temperature=0.8, top_p=0.9,
        store=False, truncation="disabled", metadata={"a": "b"}, include=["reasoning.encrypted_content"], extra_body={"seed": 7},
    )  # fmt: skip
    chat = await client.chat.completions.create(
        model=f"{model}@cheerful", max_tokens=5, temperature=0.8, top_p=0.9, seed=7,
        messages=[
            {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "Bye"},
        ],
    )  # fmt: skip
    assert response.output_text == chat.choices[0].message.content
    limited = chat.choices[0].finish_reason == "length"
    assert response.status == ("incomplete" if limited else "completed")
    assert (response.incomplete_details is not None) == limited
    assert response.usage is not None
    assert chat.usage is not None
    assert response.usage.input_tokens == chat.usage.prompt_tokens
    assert response.usage.total_tokens == chat.usage.total_tokens
    assert (response.temperature, response.top_p, response.metadata) == (0.8, 0.9, {"a": "b"})
    assert extras(response)["seed"] == 7
    assert extras(response)["steering"]["record"] == extras(chat)["steering"]["record"]
    assert [one["vector"] for one in extras(response)["steering"]["applied"]] == ["mood@1"]
    again = [*spoken, *response.output, {"role": "user", "content": "More"}]
    assert (await client.responses.create(model=model, input=again, max_output_tokens=1)).output


async def test_a_stream_ends_with_the_response(client: AsyncOpenAI, model: str) -> None:
    asked: dict[str, Any] = {
        "model": model,
        "input": "Hello",
        "max_output_tokens": 6,
        "extra_body": {"seed": 5, "steering": [{"vector": "mood"}]},
    }
    plain = await client.responses.create(**asked)
    events = [event async for event in await client.responses.create(**asked, stream=True)]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events if event.type != "response.output_text.delta"] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
        "response.output_text.done", "response.content_part.done", "response.output_item.done", f"response.{plain.status}",
    ]  # fmt: skip
    assert events[0].response.status == "in_progress"
    ended = events[-1].response
    assert len({event.response.id for event in (events[0], events[-1])}) == 1
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == plain.output_text
    assert ended.output_text == plain.output_text
    assert extras(ended)["steering"]["record"] == extras(plain)["steering"]["record"]


@pytest.mark.parametrize("family", TEMPLATES)
async def test_a_function_is_called_and_its_result_is_read_plain_and_streamed(family: str) -> None:
    async with speaking(family) as (engine, client):
        engine.says = ANSWERS[family]
        response = await client.responses.create(**TOOLS)
        assert '"description": "Tells the weather."' in engine.read()
        kinds = ["message", "function_call", "function_call"][family == "llama3_json" :]
        assert ([item.type for item in response.output], response.status) == (kinds, "completed")
        assert response.output_text == ("" if family == "llama3_json" else "One moment.")
        calls = [item for item in response.output if item.type == "function_call"]
        assert [(call.name, json.loads(call.arguments)) for call in calls] == CALLED
        assert response.tools[0].model_dump()["parameters"] == SCHEMA
        events = [event async for event in await client.responses.create(**TOOLS, stream=True)]
        ended = events[-1].response
        assert [item.type for item in ended.output] == kinds
        done = [event.item for event in events if event.type == "response.output_item.done"]
        assert [item.model_dump() for item in done] == [item.model_dump() for item in ended.output]
        parts = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
        assert [json.loads(part) for part in parts] == [arguments for _, arguments in CALLED]

        engine.says = "Sunny."
        result = {"type": "function_call_output", "call_id": calls[0].call_id, "output": "sunny, 21 degrees"}
        spoken = [{"role": "user", "content": "How is Bern?"}, *response.output, result]
        last = await client.responses.create(**{**TOOLS, "input": spoken})
        assert (last.output_text, len(last.output)) == ("Sunny.", 1)
        assert "sunny, 21 degrees" in engine.read()
        assert '{"city": "Bern", "days": 2}' in engine.read()


async def test_thoughts_are_an_item_plain_and_streamed_and_can_be_sent_back() -> None:
    async with speaking(build_thinking_tokenizer("hermes", "think", opened=False)) as (engine, client):
        engine.says = '<think>A call? Yes.</think>One moment.<tool_call>{"name": "clock", "arguments": {}}</tool_call>'
        response: Any = await client.responses.create(**TOOLS)
        assert [item.type for item in response.output] == ["reasoning", "message", "function_call"]
        assert response.output[0].content[0].text == "A call? Yes."
        thinking = len("A call? Yes.") + 2
        assert response.usage.output_tokens_details.reasoning_tokens == thinking, "bytes are tokens, and so is a marker"
        assert response.output_text == "One moment."
        events = [event async for event in await client.responses.create(**TOOLS, stream=True)]
        thought = "".join(event.delta for event in events if event.type == "response.reasoning_text.delta")
        assert thought == "A call? Yes."
        done = [event.item for event in events if event.type == "response.output_item.done"]
        assert [item.model_dump() for item in done] == [item.model_dump() for item in events[-1].response.output]
        result = {"type": "function_call_output", "call_id": response.output[2].call_id, "output": "12"}
        asked: Any = [{"role": "user", "content": "How late is it?"}, *response.output, result]
        await client.responses.create(**{**TOOLS, "input": asked})
        assert "<think>A call? Yes.</think>" in engine.read()


THOUGHT = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm"}]}
CALLED_CLOCK = {"type": "function_call", "call_id": "a", "name": "clock", "arguments": "{}"}
RESULT = {"type": "function_call_output", "call_id": "a", "output": "12"}


def test_reasoning_belongs_to_the_next_item_of_the_assistant() -> None:
    user, said = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}
    for items, expected in (
        ([user, THOUGHT, said, user], [("user", "", "Hi"), ("assistant", "Hm", "Yes"), ("user", "", "Hi")]),
        ([user, THOUGHT, user, said, user], [("user", "", "Hi"), ("assistant", "Hm", ""), ("user", "", "Hi"), ("assistant", "", "Yes"), ("user", "", "Hi")]),
        ([user, THOUGHT, THOUGHT, said, user], [("user", "", "Hi"), ("assistant", "HmHm", "Yes"), ("user", "", "Hi")]),
        ([user, THOUGHT, CALLED_CLOCK, THOUGHT, RESULT], [("user", "", "Hi"), ("assistant", "Hm", ""), ("assistant", "Hm", ""), ("tool", "", "12")]),
    ):  # fmt: skip
        messages = ResponsesRequest.model_validate({"model": "tiny", "input": items}).conversation()
        assert [(one.role, getattr(one, "reasoning", ""), one.content) for one in messages] == expected
    with pytest.raises(InvalidRequest, match="the last item of 'input' is of type 'reasoning'"):
        ResponsesRequest.model_validate({"model": "tiny", "input": [user, THOUGHT]}).conversation()


class Weather(BaseModel):
    """Arguments of which the `openai` package makes a function."""

    city: str
    days: int


async def test_the_helpers_of_the_client_parse_and_what_they_return_can_be_sent_back() -> None:
    async with speaking("hermes") as (engine, client):
        engine.says = '<tool_call>{"name": "Weather", "arguments": {"city": "Bern", "days": 2}}</tool_call>'
        asked: dict[str, Any] = {"model": "tiny", "tools": [openai.pydantic_function_tool(Weather)]}
        async with client.responses.stream(**asked, input="How is Bern?") as stream:
            final = await stream.get_final_response()
        parsed = await client.responses.parse(**asked, input="How is Bern?")
        engine.says = "Sunny."
        for response in (final, parsed):
            (call,) = response.output
            assert call.type == "function_call"
            assert call.parsed_arguments == Weather(city="Bern", days=2)
            result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": [{"type": "input_text", "text": "sunny"}]}  # fmt: skip
            spoken = [{"role": "user", "content": "How is Bern?"}, call, result]
            answer = await client.responses.parse(**asked, input=spoken)
            assert answer.output_text == "Sunny."


async def test_a_text_is_held_to_a_schema(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    model = FAMILIES["llama"]()
    model.config.max_position_embeddings = 1024
    engine = TransformersEngine(opened(model, hf_byte_tokenizer, name="tiny"))
    async with (
        Listening(engine) as listening,
        AsyncOpenAI(base_url=f"{listening.url}/v1", api_key="none", max_retries=0) as client,
    ):
        answer = await client.responses.parse(model="tiny", input="How?", text_format=Mood, extra_body={"seed": 5})
        assert isinstance(answer.output_parsed, Mood)
        again: Any = [{"role": "user", "content": "How?"}, *answer.output, {"role": "user", "content": "How?"}]
        second = await client.responses.create(
            model="tiny", input=again, text={"format": {"type": "json_object"}}, max_output_tokens=1
        )
        assert second.output_text.startswith("{")


async def test_tool_choice_and_parallel_calls_are_those_of_chat() -> None:
    async with speaking("hermes") as (engine, client):
        engine.says = ANSWERS["hermes"]
        none = await client.responses.create(**TOOLS, tool_choice="none")
        assert none.output_text == engine.says
        one = await client.responses.create(**TOOLS, parallel_tool_calls=False)
        assert [item.type for item in one.output] == ["message", "function_call"]
        assert "left out" in extras(one)["steering"]["warnings"][0]
        assert (one.parallel_tool_calls, one.tool_choice) == (False, "auto")


CALL = {"type": "function_call", "call_id": "a", "name": "weather", "arguments": "{}"}
REFUSED: list[tuple[dict[str, Any], str, str, str]] = [
    ({"store": True}, "unsupported_parameter", "store", "not supported"),
    ({"previous_response_id": "resp_1"}, "unsupported_parameter", "previous_response_id", "not supported"),
    ({"conversation": "conv_1"}, "unsupported_parameter", "conversation", "not supported"),
    ({"background": True}, "unsupported_parameter", "background", "not supported"),
    ({"reasoning": {"effort": "low"}}, "unsupported_parameter", "reasoning.effort", "does not think"),
    ({"text": {"verbosity": "low"}}, "unsupported_parameter", "text.verbosity", "not supported"),
    ({"tools": [{"type": "web_search"}]}, "unsupported_parameter", "tools", "'web_search'"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "unsupported_parameter", "input", "'item_reference'"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://a"}]}]}, "unsupported_parameter", "input", "'input_image'"),
    ({"input": ["x"]}, "invalid_request", "input.0", "expected an object"),
    ({"input": []}, "invalid_request", "input", "at least 1"),
    ({"input": [CALL, {**CALL, "arguments": "["}]}, "invalid_request", "input", "JSON"),
    ({"input": [CALL] * 129}, "invalid_request", "input", "128"),
    ({"input": [{"type": "function_call_output", "call_id": "b", "output": "x"}]}, "invalid_request", "input", "'b'"),
    ({"tools": [CLOCK, CLOCK]}, "invalid_request", "tools", "two functions of one name"),
    ({"tools": [CLOCK], "tool_choice": {"type": "function", "name": "other"}}, "invalid_request", "tool_choice", "'other'"),
    ({"tools": [CLOCK], "text": {"format": {"type": "json_object"}}}, "invalid_request", "", "'text.format'"),
    ({"tools": [{**CLOCK, "parameters": {"type": "array"}}]}, "invalid_request", "tools.0.parameters", "object"),
    ({"text": {"format": {"type": "json_schema", "name": "a", "schema": {"enum": ["a"] * 1025}}}}, "invalid_request", "text.format.schema", "1025"),
    ({"input": "x" * 9000}, "context_length_exceeded", "input", ""),
    ({"max_output_tokens": 20_000}, "context_length_exceeded", "max_output_tokens", ""),
    ({"extra_body": {"stop": ["a"]}}, "invalid_request", "stop", "not known"),
    ({"extra_body": {"steering": [{"vector": "mood", "color": 1}]}}, "invalid_request", "steering.0.color", "not known"),
]  # fmt: skip


async def test_what_would_change_an_answer_is_refused_by_name() -> None:
    async with speaking("hermes") as (_, client):
        for changes, code, param, words in REFUSED:
            with pytest.raises(openai.BadRequestError) as refused:
                await client.responses.create(**{"model": "tiny", "input": "Hello", **changes})
            assert (refused.value.code, refused.value.param or "") == (code, param), changes
            assert words in str(refused.value), changes


async def test_an_answer_that_a_monitor_stops_is_incomplete(server: Server) -> None:
    await server.register("mood")
    monitor = {"name": "watch", "vector": "mood", "above": 0.0, "action": "stop"}
    assert (await server.client.put("/v1/policy", json={"monitors": [monitor]})).status_code == 200
    body = {"model": "scripted", "input": "Hello", "max_output_tokens": 12}
    stopped = (await server.client.post("/v1/responses", json=body)).json()
    assert (stopped["status"], stopped["incomplete_details"]) == ("incomplete", {"reason": "content_filter"})
    assert stopped["flags"][0]["monitor"] == "watch"
    streamed = events_of((await server.client.post("/v1/responses", json={**body, "stream": True})).text)
    assert streamed[-1][0] == "response.incomplete"


async def test_failures_reach_the_client_by_class_and_code() -> None:
    engine = ScriptedEngine()
    async with (
        Listening(engine) as listening,
        AsyncOpenAI(base_url=f"{listening.url}/v1", api_key="x", max_retries=0) as client,
    ):
        asked: dict[str, Any] = {"model": "scripted", "input": "Hello", "max_output_tokens": 8}
        with pytest.raises(openai.NotFoundError) as missing:
            await client.responses.create(**{**asked, "model": "scripted@nobody"})
        assert missing.value.code == "model_not_found"
        engine.failure, engine.fail_at = ValueError("secret"), 2
        with pytest.raises(openai.InternalServerError):
            await client.responses.create(**asked)
        stream = await client.responses.create(**asked, stream=True)
        assert (await anext(stream)).type == "response.created"
        with pytest.raises(openai.APIError) as cut:
            await collected(stream)
        assert cut.value.code == "internal_error"
        assert "secret" not in str(cut.value)
