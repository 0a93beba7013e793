"""POST /v1/vectors/distil: an instruction becomes a vector with a map, as a job or while one waits; what is too much is refused."""

import asyncio
from typing import Any

import pytest

from steering.client import Client
from steering.concepts.described import described
from steering.lab.distil import COMPARING
from tests.app.conftest import Server, StartServer, state
from tests.app.running import running
from tests.fakes import ScriptedEngine
from tests.polling import until

PROMPTS = [f"say {number}" for number in range(10)]
BODY: dict[str, Any] = {"name": "pirate", "instruction": "Answer as a pirate.", "prompts": PROMPTS, "max_tokens": 8}


async def test_the_vector_has_a_map_at_each_layer_and_is_stored(server: Server) -> None:
    answer = await server.client.post("/v1/vectors/distil?wait=true", json={**BODY, "layers": [1, 2], "rank": 2})
    assert answer.status_code == 201, answer.text
    vector = answer.json()
    assert (vector["id"], vector["method"], vector["layers"]) == ("pirate@1", "distil", [1, 2])
    assert {layer: form["activation"] for layer, form in vector["maps"].items()} == {"1": "linear", "2": "linear"}
    assert vector["recommended"]["layers"] == [1, 2]
    assert set(vector["provenance"]["constant"]) == {"1", "2"}
    assert vector["quality"]["layers"]["1"]["explained"] is not None
    assert (await server.client.get("/v1/vectors/pirate")).json() == vector
    item = {"vector": "pirate", "operation": "apply"}
    applied = await server.client.post("/v1/generate", json={"prompt": "a", "max_tokens": 1, "steering": [item]})
    assert applied.json()["steering"]["applied"][0]["layers"] == [1, 2]


async def test_a_concept_in_words_stands_for_its_instruction(server: Server) -> None:
    body = {**BODY, "instruction": None, "concept": "pirate", "layers": [1]}
    answer = await server.client.post("/v1/vectors/distil?wait=true", json=body)
    assert answer.status_code == 201, answer.text
    entry = described()["pirate"]
    assert entry.positive in answer.json()["provenance"]["instruction"]
    assert answer.json()["description"] == entry.description


async def test_a_job_tells_its_progress_and_keeps_no_text_of_the_caller(start: StartServer) -> None:
    server = await start(ScriptedEngine(gate=asyncio.Event()))  # which never opens
    started = await server.client.post("/v1/vectors/distil", json=BODY)
    assert started.status_code == 202
    path = f"/v1/jobs/{started.json()['id']}"

    await until(lambda: len(server.scripted.requests) > 0)
    job = (await server.client.get(path)).json()
    assert (job["kind"], job["subject"]) == ("distil", "pirate")
    assert "pirate." not in (await server.client.get("/v1/jobs")).text
    assert (await server.client.delete(path)).status_code in (200, 202)
    assert (await server.client.get("/v1/vectors")).json()["data"] == []


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"instruction": ""}, "instruction", "must not be empty"),
        ({"instruction": " "}, "instruction", "the instruction is empty"),
        ({"prompts": PROMPTS[:7]}, "prompts", "at least 8 different prompts, got 7"),
        ({"rank": 17}, "rank", "16"),
        ({"layers": [9]}, "layers", "9"),
        ({"max_tokens": 3}, "max_tokens", "4"),
        ({"judge": "me"}, "judge", "not known"),
        ({"concept": "pirate"}, None, "exactly one of 'instruction' and 'concept'"),
        ({"instruction": None, "concept": "assistant"}, "concept", "has no instruction; extract it"),
        ({"instruction": None, "concept": "sentiment"}, "concept", "has no instruction; extract it"),
    ],
)
async def test_what_cannot_be_distilled_is_refused(
    server: Server, change: dict[str, Any], param: str | None, message: str
) -> None:
    answer = await server.client.post("/v1/vectors/distil", json={**BODY, **change})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert message in error["message"]
    assert not server.scripted.requests


async def test_the_work_is_bounded_before_it_begins(start: StartServer) -> None:
    server = await start(max_pairs=9)
    answer = await server.client.post("/v1/vectors/distil", json=BODY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "limit_exceeded")
    server = await start(max_activations=1000)
    answer = await server.client.post("/v1/vectors/distil", json=BODY)
    assert "activations (prompts x tokens x layers x d_model)" in answer.json()["error"]["message"]


async def test_all_residuals_that_are_held_count(start: StartServer) -> None:
    """64 positions of 10 prompts with the instruction and without, and 8 whole conversations: 32 tokens of a prompt, 8 of an answer."""
    width = ScriptedEngine().info.d_model
    held = 2 * 10 * 64 + 8 * (32 + 8)
    for most, status in ((held, 202), (held - 1, 400)):
        server = await start(max_activations=most * width)
        answer = await server.client.post("/v1/vectors/distil", json={**BODY, "layers": [1]})
        assert answer.status_code == status, answer.text


async def test_the_tokens_of_the_instruction_are_charged_for_each_reading(start: StartServer) -> None:
    """Each prompt is answered under it, and read under it for its residuals and for its predictions."""
    server = await start()
    tokens = state(server.app).metrics.key_tokens
    short, long = "Answer as a pirate.", "Answer as a pirate who has been at sea for years."

    async def charged(instruction: str) -> float:
        tokens.clear()
        answer = await server.client.post("/v1/vectors/distil?wait=true", json={**BODY, "instruction": instruction})
        assert answer.status_code == 201, answer.text
        return sum(one.value for family in tokens.collect() for one in family.samples if one.name.endswith("_total"))

    encode = server.scripted.tokenizer.encode
    more = len(encode(long)) - len(encode(short))
    assert await charged(long) - await charged(short) == 3 * len(PROMPTS) * more > 0


async def test_a_comparison_with_the_instruction_is_charged_by_64_tokens_of_each_answer(start: StartServer) -> None:
    server = await start()
    tokens = state(server.app).metrics.key_tokens

    async def charged(max_tokens: int) -> float:
        tokens.clear()
        body = {**BODY, "max_tokens": max_tokens, "layers": [1]}
        assert (await server.client.post("/v1/vectors/distil?wait=true", json=body)).status_code == 201
        return sum(one.value for family in tokens.collect() for one in family.samples if one.name.endswith("_total"))

    counts = [await charged(count) for count in (32, 64, 96)]
    assert counts[1] - counts[0] == len(PROMPTS) * (3 + COMPARING) * 32
    assert counts[2] - counts[1] == len(PROMPTS) * 3 * 32


def test_the_client_waits_for_it() -> None:
    with running() as address, Client(address) as client:
        vector = client.distil_vector("pirate", "Answer as a pirate.", prompts=PROMPTS, layers=[1], max_tokens=6)
    assert list(vector.maps) == ["1"]
