"""The policy over the whole OpenAPI document: under mandatory steering no route returns what the model does without it."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from tests.app.conftest import Server, StartServer, events_of
from tests.app.document import DOCUMENT
from tests.app.policy.conftest import directions, put_policy, tiny_engine
from tests.app.policy.governed_routes import ELSEWHERE, GOVERNED, NOTHING_COMPUTED, STORED, Governed

PUSH = {"vector": "mood", "strength": 30.0, "layers": [0, 1, 2]}
MONITOR = {"name": "watch", "vector": "mood", "above": 1000.0}


@pytest.fixture
async def pair(start: StartServer, hf_byte_tokenizer: PreTrainedTokenizerFast) -> tuple[Server, Server]:
    """Two servers over equal models with equal vectors: one without a policy, one with mandatory steering of huge effect."""
    servers = (await start(tiny_engine(hf_byte_tokenizer)), await start(tiny_engine(hf_byte_tokenizer)))
    for server in servers:
        for seed, name in enumerate(("mood", "other")):
            body = {
                "name": name,
                "directions": directions(server.engine.info.d_model, seed),
                "scale": dict.fromkeys("012", 2.0),
            }
            assert (await server.client.post("/v1/vectors", json=body)).status_code == 201
    await put_policy(servers[1], mandatory=[PUSH], monitors=[MONITOR])
    return servers


def test_every_route_has_a_case() -> None:
    routes = {f"{method.upper()} {path}" for path, methods in DOCUMENT["paths"].items() for method in methods}
    known = {one.route for one in GOVERNED} | NOTHING_COMPUTED | STORED | set(ELSEWHERE)
    assert routes - known == set(), "say in governed_routes.py what a caller gets there under mandatory steering"


async def test_nothing_that_a_route_returns_is_what_the_model_does_without_the_policy(
    pair: tuple[Server, Server],
) -> None:
    for case in GOVERNED:
        seen = await scores_seen(pair[1])
        free, governed = [await answered(server, case) for server in pair]
        for name in case.outputs:
            before, after = list(values(free, name)), list(values(governed, name))
            assert before, f"the answer of {case.route} has no {name}: {free}"
            texts = [one for one in before if isinstance(one, str)]
            if texts:
                assert after, (case.route, name)
                assert not set(texts) & set(after), (case.route, name)
            else:
                same = [one for one, other in zip(before, after, strict=False) if one == other]
                assert not same, (case.route, name, before, after)
        if case.written:
            assert await scores_seen(pair[1]) > seen, f"no monitor has read the answer of {case.route}"


async def scores_seen(server: Server) -> int:
    """Returns how many scores the monitor has read."""
    found: int = (await server.client.get("/v1/monitors/watch")).json()["scores"]
    return found


async def answered(server: Server, case: Governed) -> Any:
    """Returns the answer of a route; of one that submits a job, its result or output."""
    method, path = case.route.split()
    if case.lines:
        headers, content = {"content-type": "application/jsonl"}, json.dumps(case.body).encode()
        answer = await server.client.request(method, path, content=content, headers=headers)
    else:
        headers = {"accept": "application/json"}
        answer = await server.client.request(method, path, json=case.body, headers=headers)
    assert answer.status_code in (200, 201, 202), answer.text
    if case.body.get("stream"):
        text = "".join(data["text"] for name, data in events_of(answer.text) if name == "token")
        return {"text": text}
    if answer.status_code != 202:
        return answer.json()
    job = answer.json()["id"]
    async with asyncio.timeout(120):
        async with server.client.stream("GET", f"/v1/jobs/{job}/events") as events:
            await events.aread()
    found = (await server.client.get(f"/v1/jobs/{job}")).json()
    assert found["status"] == "succeeded", str(found["error"])
    if case.lines:
        return [json.loads(line) for line in (await server.client.get(f"/v1/jobs/{job}/output")).text.splitlines()]
    return found["result"]


def values(answer: Any, name: str, inside: bool = False) -> Iterator[Any]:
    """Yields every text, and every number that is not whole, in fields of a name."""
    if isinstance(answer, dict):
        for key, value in answer.items():
            yield from values(value, name, inside or key == name)
    elif isinstance(answer, list):
        for value in answer:
            yield from values(value, name, inside)
    elif inside and (isinstance(answer, str) or (isinstance(answer, float) and not answer.is_integer())):
        yield answer
