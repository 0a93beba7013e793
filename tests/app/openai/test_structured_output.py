"""`response_format`, `guided_regex` and `guided_grammar` over HTTP and with the unmodified `openai` client."""

import json
import re
from collections.abc import AsyncIterator
from typing import Any, Literal

import openai
import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel, Field
from transformers import PreTrainedTokenizerFast

from steering.engine.transformers.engine import TransformersEngine
from steering.model.loading import opened
from tests.app.conftest import Server, StartServer, events_of
from tests.app.core.listening import Listening
from tests.app.policy.conftest import directions
from tests.contracts.engines import unclosed
from tests.docs.test_bodies import blocks
from tests.families import FAMILIES

SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["good", "bad", None]}, "score": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["mood", "score"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "mood", "schema": SCHEMA}}
MULTIPLES: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"allOf": [{"type": "integer", "multipleOf": 9973}, {"multipleOf": 9967}]}},
    "required": ["a"],
}
"""More remainders than are told apart."""
ASK: dict[str, Any] = {"prompt": "How was it?", "max_tokens": 200, "temperature": 1.0, "seed": 5}
STEERED = {"steering": [{"vector": "mood", "layers": "all", "strength": 3.0}]}
CHAT: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "How was it?"}],
    "max_tokens": 200,
    "seed": 5,
}


class Mood(BaseModel):
    """What the `openai` client makes a schema of."""

    mood: Literal["good", "bad"]
    score: int = Field(ge=0, le=9)


@pytest.fixture
def engine(hf_byte_tokenizer: PreTrainedTokenizerFast) -> TransformersEngine:
    model = FAMILIES["llama"]()
    model.config.max_position_embeddings = 2048
    return TransformersEngine(opened(model, hf_byte_tokenizer, name="tiny"))


@pytest.fixture
async def tiny(start: StartServer, engine: TransformersEngine) -> Server:
    """A server with a vector, over a tiny model with a context for whole answers."""
    server = await start(engine)
    body = {"name": "mood", "directions": directions(engine.info.d_model, 1)}
    assert (await server.client.post("/v1/vectors", json=body)).status_code == 201
    return server


async def answered(server: Server, path: str, **fields: Any) -> dict[str, Any]:
    answer = await server.client.post(path, json=fields)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def refused(server: Server, **fields: Any) -> dict[str, Any]:
    answer = await server.client.post("/v1/generate", json={**ASK, **fields})
    assert answer.status_code == 400, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


def tokens_of(choice: dict[str, Any]) -> tuple[str, list[int]]:
    return choice["text"], [token["id"] for token in choice["tokens"]]


async def test_every_choice_matches_and_a_stream_and_a_replay_equal_it(tiny: Server) -> None:
    ask = {**ASK, **STEERED, "response_format": FORMAT, "n": 3, "logprobs": 2}
    plain = await answered(tiny, "/v1/generate", **ask)
    for choice in plain["choices"]:
        assert Mood.model_validate(json.loads(choice["text"]) | {"mood": "good"})
        assert choice["finish_reason"] == "stop"
    streamed = await tiny.client.post("/v1/generate", json={**ask, "stream": True})
    events = events_of(streamed.text)
    assert [tokens_of(choice) for choice in events[-1][1]["choices"]] == [tokens_of(one) for one in plain["choices"]]
    for index, choice in enumerate(plain["choices"]):
        assert choice["text"] == "".join(
            one["text"] for name, one in events if name == "token" and one["choice"] == index
        )
    assert plain["steering"]["record"]["sampling"]["response_format"]["json_schema"]["schema"] == SCHEMA
    replayed = await answered(tiny, "/v1/replay", **plain["steering"]["record"])
    assert [one["text"] for one in replayed["choices"]] == [one["text"] for one in plain["choices"]]


async def test_json_objects_expressions_and_grammars_on_every_route(tiny: Server) -> None:
    phone = {"guided_regex": "[0-9]{3}-[0-9]{2}"}
    chat = await answered(tiny, "/v1/chat/completions", **CHAT, **phone)
    assert re.fullmatch(phone["guided_regex"], chat["choices"][0]["message"]["content"])
    sums = {"guided_grammar": 'start: "1" ("+1")~2'}
    texts = await answered(tiny, "/v1/completions", model="tiny", prompt=["a", "b"], seed=1, max_tokens=9, **sums)
    assert [one["text"] for one in texts["choices"]] == ["1+1+1"] * 2
    schema = {"guided_grammar": 'start: "n = " %json {"type": "integer", "minimum": 1, "maximum": 9}'}
    number = await answered(tiny, "/v1/generate", **ASK, **schema)
    assert re.fullmatch("n = [1-9]", number["choices"][0]["text"])
    replayed = await answered(tiny, "/v1/replay", **number["steering"]["record"])
    assert replayed["choices"][0]["text"] == number["choices"][0]["text"]
    arms = await answered(tiny, "/v1/compare", **ASK, **STEERED, **phone)
    assert all(re.fullmatch(phone["guided_regex"], arm["choices"][0]["text"]) for arm in arms["arms"])
    whole = await answered(tiny, "/v1/generate", **ASK, response_format={"type": "json_object"})
    text = whole["choices"][0]["text"]
    assert text.lstrip().startswith("{")
    assert whole["choices"][0]["finish_reason"] == "length" or isinstance(json.loads(text), dict)
    plain = [
        await answered(tiny, "/v1/generate", **ASK),
        await answered(tiny, "/v1/generate", **ASK, response_format={"type": "text"}),
    ]
    assert plain[0]["choices"] == plain[1]["choices"]


async def test_the_request_of_the_page_is_answered(tiny: Server) -> None:
    (block,) = [block for block in blocks("api.md") if '"response_format"' in block]
    text = (await answered(tiny, "/v1/generate", **json.loads(block)))["choices"][0]["text"]
    assert json.loads(text)["days"] >= 1


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


UNUSABLE: list[tuple[dict[str, Any], str]] = [
    (nested(33), "deeper than 32 levels"),
    ({"enum": list(range(1025))}, "1025 values in 'enum'; at most 1024"),
    ({"anyOf": [{"enum": list(range(600))}] * 2}, "1200 values in 'enum'"),
    ({"properties": {f"p{i}": {} for i in range(4096)}}, "more than 4096 values"),
    ({"description": "x" * 64_000}, "bytes; at most 64000"),
    ({"type": "integer", "multipleOf": 123_456_789}, "multipleOf"),
    (MULTIPLES, "least common multiple"),
    ({"anyOf": [{"multipleOf": 1e-300}, {"multipleOf": 1e300}]}, "multipleOf"),
    ({"$defs": {"z": {"multipleOf": 0}}, **MULTIPLES}, "'multipleOf' must be above 0"),
    ({**MULTIPLES, "$defs": {"z": {"multipleOf": -0.5}}}, "'multipleOf' must be above 0"),
    ({"$ref": "#"}, "the JSON schema cannot be used"),
    ({"$ref": "file:///etc/hostname"}, "does not fetch"),
    ({"type": "string", "pattern": "(a"}, "unclosed group"),
    ({"not": {"type": "string"}}, "not"),
]


async def test_a_schema_that_cannot_be_used_is_refused(tiny: Server) -> None:
    for schema, says in UNUSABLE:
        given = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        error = await refused(tiny, response_format=given)
        assert says in error["message"]
        assert error["param"].startswith("response_format"), says
        assert len(error["message"]) < 500, says
    assert tiny.engine.stats().steps == 0


async def test_what_is_no_grammar_is_refused_by_name(tiny: Server) -> None:
    two = await refused(tiny, guided_regex="a", response_format={"type": "json_object"})
    assert "at most one of" in two["message"]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"guided_regex": "(a"}, "guided_regex"),
        ({"guided_regex": "a" * 4097}, "guided_regex"),
        ({"guided_grammar": "start: word"}, "guided_grammar"),
        ({"guided_grammar": 'start: %json {"multipleOf": 123456789}'}, "guided_grammar"),
        ({"guided_grammar": f"start: %json {json.dumps(nested(33))}"}, "guided_grammar"),
        ({"guided_grammar": f"start: %json {json.dumps({'enum': list(range(1025))})}"}, "guided_grammar"),
        ({"guided_grammar": "start: %json // {}"}, "guided_grammar"),
        ({"guided_grammar": f"start: %json {'[' * 9999}"}, "guided_grammar"),
        ({"guided_grammar": 'start: %json {"not": {}}'}, "guided_grammar"),
        ({"response_format": {"type": "json"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ]
    for fields, param in wrong:
        assert (await refused(tiny, **fields))["param"].startswith(param), fields
    for number, name in (("NaN", "NaN"), ("-Infinity", "-Infinity"), ("1e999", "a number")):
        error = await refused(tiny, guided_grammar=f'start: %json {{"multipleOf": {number}}}')
        assert (error["param"], f"{name} is not finite" in error["message"]) == ("guided_grammar", True)


async def test_a_schema_within_a_grammar_may_contain_what_begins_one(tiny: Server) -> None:
    grammar = 'start: %json {"enum": ["%json x"]} "," %json {"enum": ["%json {}"]}'
    answer = await answered(tiny, "/v1/generate", **ASK, guided_grammar=grammar)
    assert answer["choices"][0]["text"] == '"%json x","%json {}"'


async def test_an_engine_without_grammars_refuses_them_by_name(server: Server) -> None:
    assert (await server.client.get("/v1/capabilities")).json()["grammars"] is False
    error = await refused(server, response_format=FORMAT)
    assert (error["code"], error["param"]) == ("unsupported_parameter", "response_format")


@pytest.fixture
async def client(engine: TransformersEngine) -> AsyncIterator[AsyncOpenAI]:
    async with (
        Listening(unclosed(engine)) as listening,
        AsyncOpenAI(base_url=f"{listening.url}/v1", api_key="none", max_retries=0) as one,
    ):
        yield one
    await engine.close()


async def test_the_openai_client_parses_answers_plain_and_streamed(client: AsyncOpenAI) -> None:
    parsed = await client.chat.completions.parse(**CHAT, response_format=Mood)
    mood = parsed.choices[0].message.parsed
    assert mood is not None
    assert 0 <= mood.score <= 9
    async with client.chat.completions.stream(**CHAT, response_format=Mood) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == parsed.choices[0].message.content
    with pytest.raises(openai.BadRequestError) as wrong:
        await client.chat.completions.create(**CHAT, extra_body={"guided_regex": "(a"})
    assert wrong.value.param == "guided_regex"
