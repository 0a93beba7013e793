"""Flags: every answer reports the tokens at which a readout passed a bound, in streams at that token, and they are counted."""

import re
from typing import Any

import pytest

from tests.app.conftest import Server, StartServer, events_of
from tests.fakes import ScriptedEngine
from tests.steering.workflows.linear import GAIN, LinearEngine

ASK: dict[str, Any] = {"prompt": "the road", "max_tokens": 12, "temperature": 1.0, "seed": 5}


@pytest.fixture
async def linear(start: StartServer) -> Server:
    """A server whose readouts rise and fall with the words it writes."""
    engine = LinearEngine()
    server = await start(engine)
    body = {"name": "mood", "directions": {"2": engine.concept.tolist()}, "scale": {"2": GAIN}}
    assert (await server.client.post("/v1/vectors", json=body)).status_code == 201
    return server


async def answered(server: Server, **body: Any) -> dict[str, Any]:
    answer = await server.client.post("/v1/generate", json={**ASK, **body})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def counted(server: Server, side: str) -> float:
    """What /metrics says of flags of that side."""
    text = (await server.client.get("/metrics")).text
    found = re.search(rf'^steering_flagged_tokens_total\{{bound="{side}"\}} (\S+)$', text, re.MULTILINE)
    return float(found.group(1)) if found else 0.0


async def test_flags_are_raised_exactly_where_the_readout_passes_the_bound(linear: Server) -> None:
    tokens = (await answered(linear, readout=["mood"]))["choices"][0]["tokens"]
    scores = [token["readout"]["mood"] for token in tokens]
    bound = sorted(scores)[len(scores) // 2]
    flag = [{"vector": "mood", "above": bound}, {"vector": "mood@1", "below": bound}, {"vector": "mood", "above": 9}]
    (choice,) = (await answered(linear, flag=flag))["choices"]
    assert choice["flags"] == [
        {"vector": "mood", "above": bound, "tokens": [i for i, score in enumerate(scores) if score > bound]},
        {"vector": "mood@1", "below": bound, "tokens": [i for i, score in enumerate(scores) if score < bound]},
    ]
    assert "tokens" not in choice, "tokens are listed where readout or logprobs was asked"
    assert await counted(linear, "above") == len(choice["flags"][0]["tokens"]) > 0
    assert await counted(linear, "below") == len(choice["flags"][1]["tokens"]) > 0


async def test_without_flags_nothing_is_reported_and_without_a_raise_there_is_none(linear: Server) -> None:
    (choice,) = (await answered(linear))["choices"]
    assert "flags" not in choice
    (choice,) = (await answered(linear, flag=[{"vector": "mood", "above": 100}]))["choices"]
    assert choice["flags"] == []
    assert await counted(linear, "above") == 0


async def test_a_stream_tells_them_as_they_are_raised(linear: Server) -> None:
    flag = [{"vector": "mood", "below": 0.0}, {"vector": "mood", "above": 0.0}]
    plain = await answered(linear, flag=flag, n=2)
    before = [await counted(linear, side) for side in ("above", "below")]
    answer = await linear.client.post("/v1/generate", json={**ASK, "flag": flag, "n": 2, "stream": True})
    *pieces, (name, last) = events_of(answer.text)
    assert name == "done"
    assert last["choices"] == plain["choices"]
    for choice in last["choices"]:
        raised = {index: one["tokens"] for index, one in ((_index(flag, one), one) for one in choice["flags"])}
        for _, piece in pieces:
            if piece["choice"] == choice["index"]:
                expected = [index for index in (0, 1) if piece["index"] in raised.get(index, [])]
                assert piece.get("flags", []) == expected
    assert [await counted(linear, side) for side in ("above", "below")] == [2 * count for count in before]


def _index(flag: list[dict[str, Any]], raised: dict[str, Any]) -> int:
    return flag.index({key: raised[key] for key in raised if key != "tokens"})


@pytest.mark.parametrize(
    ("flag", "code", "param"),
    [
        ([{"vector": "mood"}], "invalid_request", "flag.0"),
        ([{"vector": "mood", "above": 1, "below": 0}], "invalid_request", "flag.0"),
        ([{"vector": "nothing", "above": 1}], "vector_not_found", "vector"),
        ([{"vector": "No Good", "above": 1}], "invalid_request", "flag"),
        ([{"vector": "mood", "above": 1, "url": "http://169.254.169.254/"}], "invalid_request", "flag.0.url"),
        ([{"vector": "mood", "above": 1}] * 9, "limit_exceeded", "flag"),
    ],
)
async def test_flags_that_cannot_be(linear: Server, flag: list[Any], code: str, param: str) -> None:
    answer = await linear.client.post("/v1/generate", json={**ASK, "flag": flag})
    assert answer.status_code in (400, 404)
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == (code, param)


async def test_names_of_vectors_are_no_labels_of_metrics(start: StartServer) -> None:
    server = await start(ScriptedEngine(length=2))
    for name in ("one", "two"):
        await server.register(name)
        await answered(server, flag=[{"vector": name, "above": 0.0}])
    text = (await server.client.get("/metrics")).text
    assert await counted(server, "above") == 4
    assert len(re.findall(r"^steering_flagged_tokens_total\{", text, re.MULTILINE)) == 1
