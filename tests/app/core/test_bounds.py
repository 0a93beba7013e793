"""Every array, string, number and tree of a request is bounded before anything grows with it."""

import asyncio
import json
import tracemalloc
from typing import Any

import pytest

from steering.strict_json import size_of
from tests.app.conftest import Server, StartServer
from tests.fakes import ScriptedEngine
from tests.polling import until

FREE_TEXT = {"cursor", "format"}


def request_schemas(document: dict[str, Any]) -> dict[str, Any]:
    """Returns every schema that a request body or query refers to, by name."""
    found: dict[str, Any] = {}
    waiting: list[Any] = []
    for path in document["paths"].values():
        for operation in path.values():
            waiting.append(operation.get("requestBody", {}))
            waiting.extend(one for one in operation.get("parameters", ()) if one["in"] == "query")
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            name = node.get("$ref", "").rpartition("/")[2]
            if name and name not in found:
                found[name] = document["components"]["schemas"][name]
                waiting.append(found[name])
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)
    return found


def unbounded(node: Any, where: str) -> list[str]:
    """Returns the places inside a schema that have no bound."""
    if isinstance(node, list):
        return [one for item in node for one in unbounded(item, where)]
    if not isinstance(node, dict):
        return []
    found = []
    kind = node.get("type")
    fixed = "enum" in node or "const" in node
    if kind == "array" and "maxItems" not in node:
        found.append(f"{where}: array")
    if kind == "string" and not fixed and not {"maxLength", "pattern", "format"} & set(node):
        found.append(f"{where}: string")
    if kind == "integer" and not (
        {"maximum", "exclusiveMaximum"} & set(node) and {"minimum", "exclusiveMinimum"} & set(node)
    ):
        found.append(f"{where}: integer")
    if (
        kind == "object"
        and "additionalProperties" in node
        and node["additionalProperties"] is not False
        and "maxProperties" not in node
    ):
        found.append(f"{where}: object")
    for key, value in node.items():
        if key == "properties":
            for name, inner in value.items():
                found += unbounded(inner, f"{where}.{name}")
        elif key not in ("enum", "const", "default", "examples", "discriminator"):
            found += unbounded(value, where)
    return found


async def test_every_array_string_and_integer_of_a_request_is_bounded(server: Server) -> None:
    schemas = request_schemas(server.app.openapi())
    assert len(schemas) > 25
    assert [place for name, schema in schemas.items() for place in unbounded(schema, name)] == []


def tree(depth: int, width: int) -> Any:
    """Returns a condition tree."""
    if depth == 0:
        return {"vector": "v", "above": 0.0}
    return {"all": [tree(depth - 1, width)] * width}


WORST = {
    "errors of one array": ("/v1/latent-space", {"texts": [1] * 100_000}),
    "errors of token ids": ("/v1/generate", {"prompt": [1.5] * 150_000}),
    "errors of numbers": ("/v1/vectors", {"name": "x", "directions": {"1": ["a"] * 100_000}}),
    "keys of an object": ("/v1/vectors", {"name": "x", "directions": {str(i): "x" for i in range(100_000)}}),
    "biases": ("/v1/generate", {"prompt": "a", "logit_bias": {str(i): "x" for i in range(60_000)}}),
    "strengths": (
        "/v1/compare",
        {"prompt": "a", "intervention": {"vector": "v"}, "strengths": [i / 7 for i in range(100_000)]},
    ),
    "arms": ("/v1/compare", {"prompt": "a", "arms": [{"name": str(i)} for i in range(40_000)]}),
    "stops": ("/v1/generate", {"prompt": "a", "stop": ["x"] * 100_000}),
    "a condition tree": ("/v1/generate", {"prompt": "a", "steering": [{"vector": "v", "when": tree(4, 8)}]}),
    "a deep condition": ("/v1/generate", {"prompt": "a", "steering": [{"vector": "v", "when": tree(25, 2 - 1)}] * 90}),
    "elements": ("/v1/generate", {"prompt": "a", "messages": [[]] * 300_000}),
    "a schema": (
        "/v1/generate",
        {
            "prompt": "a",
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": {"enum": [{"a": i} for i in range(60_000)]}},
            },
        },
    ),
    "a link": ("/v1/links", {"view": "compare", "state": {"x": "y" * 1_500_000}}),
    "keys of a link": ("/v1/links", {"view": "compare", "state": {str(i): "x" for i in range(100_000)}}),
    "nesting": ("/v1/generate", {"prompt": json.loads("[" * 80 + "]" * 80)}),
}


@pytest.mark.parametrize("what", WORST)
async def test_the_worst_bodies_are_refused_in_little_memory(server: Server, what: str) -> None:
    path, body = WORST[what]
    content = json.dumps(body).encode()
    tracemalloc.start()
    try:
        answer = await server.client.post(path, content=content, headers={"content-type": "application/json"})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert answer.status_code == 400, answer.text
    assert len(answer.content) < 1000
    assert peak < size_of(content).memory + 10_000_000, "what a running request reserves for its body"


async def test_a_body_is_refused_for_its_values_before_it_is_parsed(start: StartServer) -> None:
    server = await start(max_body_elements=1000, max_upload_elements=4000)
    refused = {
        "/v1/generate": (b'{"prompt": [' + b"1," * 1000 + b"1]}", "more than 1000 elements"),
        "/v1/latent-space": (
            b'{"texts": [' + b"1," * 4000,
            "more than 4000 elements",
        ),  # cut off, which a parser would say
        "/v1/clusters": (b'{"texts": [' + b"[]," * 999 + b"[]]}", "more than 1000 lists and objects"),
        "/v1/activations": (b'{"texts": [' + b"{}," * 999 + b"{}]}", "more than 1000 lists and objects"),
    }
    for path, (content, reason) in refused.items():
        answer = await server.client.post(path, content=content, headers={"content-type": "application/json"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "limit_exceeded"), answer.text
        assert reason in answer.json()["error"]["message"]
    text = '[{"a": 1, "b": "\\\\"}, ' * 500
    answer = await server.client.post("/v1/generate", json={"prompt": text, "max_tokens": 1})
    assert answer.json()["error"]["code"] == "context_length_exceeded", "punctuation inside a text is text"


async def test_the_lines_of_a_batch_are_bounded_together(start: StartServer) -> None:
    server = await start(max_upload_elements=1000)
    content = b'{"prompt": [1, 2, 3]}\n' * 400
    answer = await server.client.post(
        "/v1/generate/batch", content=content, headers={"content-type": "application/jsonl"}
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "limit_exceeded"), answer.text


async def test_a_request_beyond_the_memory_of_all_requests_is_refused(start: StartServer) -> None:
    server = await start(memory_megabytes=4)
    answer = await server.client.post("/v1/generate", json={"prompt": "a" * 1_000_000, "max_tokens": 1})
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "out_of_memory"), answer.text
    assert "STEERING_MEMORY_MEGABYTES" in answer.json()["error"]["message"]
    assert answer.headers["x-should-retry"] == "false"
    body = {"model": "scripted", "prompt": "a" * 3000, "max_tokens": 0, "echo": True, "logprobs": 20}
    answer = await server.client.post("/v1/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "out_of_memory"), answer.text
    assert server.state.memory.reserved == 0


@pytest.mark.parametrize("path", ["/v1/generate", "/v1/replay"])
async def test_the_memory_of_listed_tokens_is_reserved(start: StartServer, path: str) -> None:
    server = await start(memory_megabytes=1)
    long = {"prompt": "a", "max_tokens": 600, "n": 4, "seed": 1}
    answer = await server.client.post("/v1/generate", json=long)
    assert answer.status_code == 200, answer.text
    replayed = answer.json()["steering"]["record"]  # a replay always lists its tokens
    body = replayed if path == "/v1/replay" else {**long, "logprobs": True}
    refused = await server.client.post(path, json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (507, "out_of_memory"), refused.text
    assert server.state.memory.reserved == 0


async def test_sampling_and_steering_are_checked_on_every_route(start: StartServer) -> None:
    server = await start(max_interventions=1, max_stops=1, max_n=1)
    await server.register("v")
    answer = await server.client.post(
        "/v1/generate", json={"prompt": "a", "max_tokens": 2, "steering": [{"vector": "v"}]}
    )
    record = answer.json()["steering"]["record"]
    two = [{"vector": "v"}, {"vector": "v"}]
    refused = [
        ("POST", "/v1/generate", {"prompt": "a", "steering": two}),
        ("POST", "/v1/compare", {"prompt": "a", "steering": two}),
        ("POST", "/v1/logit-lens", {"prompt": "a", "steering": two}),
        ("PUT", "/v1/profiles/p", {"interventions": two}),
        ("PUT", "/v1/steering", {"interventions": two}),
        ("POST", "/v1/replay", {**record, "interventions": record["interventions"] * 2}),
        ("POST", "/v1/replay", {**record, "n": 2}),
        ("POST", "/v1/replay", {**record, "sampling": {**record["sampling"], "stop": ["a", "b"]}}),
        ("POST", "/v1/compare", {"prompt": "a", "arms": [{"name": "x", "steering": []}], "stop": ["a", "b"]}),
    ]
    for method, path, body in refused:
        answer = await server.client.request(method, path, json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "limit_exceeded"), (path, answer.text)


async def test_memory_of_running_requests_is_bounded_and_returned(start: StartServer) -> None:
    gate = asyncio.Event()
    server = await start(ScriptedEngine(gate=gate), memory_megabytes=1)
    body = {"prompt": "a" * 100_000, "messages": None}
    first = asyncio.create_task(server.client.post("/tokenize", json=body))
    await first
    assert server.state.memory.reserved == 0
    held = [
        asyncio.create_task(
            server.client.post("/v1/generate", json={"prompt": "a", "max_tokens": 1, "stop": ["b" * 60] * 4})
        )
        for _ in range(2)
    ]
    await until(lambda: server.engine.stats().running == 2)  # both have taken all that they take
    server.state.memory.reserve(server.state.memory.limit - server.state.memory.reserved)
    refused = await server.client.post("/v1/generate", json={"prompt": "a"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
    gate.set()
    await asyncio.gather(*held)
