"""POST /v1/compare: arms in one batch with one seed, what differs, and a stream whose events name their arm."""

from typing import Any

import pytest

from tests.app.conftest import Server, events_of

STEERED = [{"vector": "sentiment", "strength": 0.7}]
ARMS: list[dict[str, Any]] = [{"name": "base", "steering": []}, {"name": "joyful", "steering": STEERED}]
ASK: dict[str, Any] = {
    "messages": [{"role": "user", "content": "How was the trip?"}],
    "seed": 7,
    "max_tokens": 8,
    "n": 2,
    "readout": ["sentiment"],
}


@pytest.fixture
async def ready(server: Server) -> Server:
    """A server with a vector."""
    await server.register()
    return server


async def test_arms_metrics_and_differences(ready: Server) -> None:
    answer = await ready.client.post("/v1/compare", json={**ASK, "arms": ARMS, "baseline": "base"})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["seed"], body["baseline"], [arm["name"] for arm in body["arms"]]) == (7, "base", ["base", "joyful"])
    base, joyful = body["arms"]
    assert "against_baseline" not in base
    assert base["steering"]["applied"] == []
    assert joyful["steering"]["applied"][0]["vector"] == "sentiment@1"
    texts = [choice["text"] for choice in joyful["choices"]]
    again = (await ready.client.post("/v1/readout", json={"texts": texts, "vectors": ["sentiment"]})).json()
    read = [text["readout"]["sentiment"]["2"]["mean"] for text in again["texts"]]
    assert joyful["metrics"]["readout"]["sentiment"]["mean"] == pytest.approx(sum(read) / len(read))
    assert joyful["metrics"]["steered_readout"]["sentiment"]["mean"] == pytest.approx(1.2)
    assert joyful["metrics"]["perplexity"] > 1
    against = joyful["against_baseline"]
    own, other = (arm["metrics"]["readout"]["sentiment"]["mean"] for arm in (joyful, base))
    assert against["readout_shift"]["sentiment"]["mean"] == pytest.approx(own - other)
    assert len(against["kl_per_token"]) == len(against["first_divergence"]) == len(joyful["choices"]) == 2
    assert len(against["kl_per_token"][0]) == 8


async def test_each_arm_is_what_generate_gives_with_that_seed(ready: Server) -> None:
    compared = (await ready.client.post("/v1/compare", json={**ASK, "arms": ARMS})).json()
    for arm, found in zip(ARMS, compared["arms"], strict=True):
        alone = (await ready.client.post("/v1/generate", json={**ASK, "steering": arm["steering"]})).json()
        assert alone["choices"] == found["choices"]


async def test_arms_of_the_same_steering_are_the_same(ready: Server) -> None:
    arms = [{"name": "one", "steering": STEERED}, {"name": "two", "steering": STEERED}]
    body = (await ready.client.post("/v1/compare", json={**ASK, "arms": arms})).json()
    assert body["arms"][0]["choices"] == body["arms"][1]["choices"]
    assert body["arms"][1]["against_baseline"]["first_divergence"] == [None, None]


async def test_steering_alone_is_base_and_steered(ready: Server) -> None:
    body = (await ready.client.post("/v1/compare", json={**ASK, "steering": STEERED})).json()
    assert [arm["name"] for arm in body["arms"]] == ["base", "steered"]
    assert body["baseline"] == "base"


async def test_strengths_are_arms(ready: Server) -> None:
    ask = {**ASK, "intervention": {"vector": "sentiment"}, "strengths": [-1, 0, 1]}
    body = (await ready.client.post("/v1/compare", json=ask)).json()
    assert [arm["name"] for arm in body["arms"]] == ["base", "-1", "+1"]
    means = [arm["metrics"]["steered_readout"]["sentiment"]["mean"] for arm in body["arms"]]
    assert means == pytest.approx([0.5, -0.5, 1.5])


async def test_an_arm_may_differ_by_its_system_prompt(ready: Server) -> None:
    arms = [{"name": "base", "steering": []}, {"name": "prompted", "system": "Answer joyfully.", "steering": []}]
    body = (await ready.client.post("/v1/compare", json={**ASK, "arms": arms})).json()
    assert body["arms"][0]["choices"] != body["arms"][1]["choices"]
    plain = {"prompt": "Once", "arms": arms}
    refused = await ready.client.post("/v1/compare", json=plain)
    assert refused.status_code == 400


async def test_a_stream_interleaves_arms_and_ends_in_the_plain_answer(ready: Server) -> None:
    ask = {**ASK, "arms": ARMS}
    plain = (await ready.client.post("/v1/compare", json=ask)).json()
    events = events_of((await ready.client.post("/v1/compare", json={**ask, "stream": True})).text)
    assert {name for name, _ in events[:-1]} == {"token"}
    name, done = events[-1]
    assert name == "done"
    assert {**done, "id": plain["id"]} == plain
    order = [data["arm"] for _, data in events[:-1]]
    assert order != sorted(order), "arms run side by side"
    for arm in plain["arms"]:
        for choice in arm["choices"]:
            mine = [d["text"] for _, d in events[:-1] if (d["arm"], d["choice"]) == (arm["name"], choice["index"])]
            assert "".join(mine) == choice["text"]


async def test_one_arm_fails_alone(ready: Server) -> None:
    arms = [*ARMS, {"name": "wild", "steering": [{"vector": "sentiment", "strength": 1e7}]}]
    body = (await ready.client.post("/v1/compare", json={**ASK, "arms": arms})).json()
    assert body["arms"][2]["error"]["code"] == "nonfinite_activations"
    assert len(body["arms"][1]["choices"]) == 2
    events = events_of((await ready.client.post("/v1/compare", json={**ASK, "arms": arms, "stream": True})).text)
    failed = [data for name, data in events if name == "error"]
    assert [(one["arm"], one["error"]["code"]) for one in failed] == [("wild", "nonfinite_activations")]
    assert events[-1][0] == "done"
    alone = await ready.client.post("/v1/compare", json={**ASK, "arms": arms[2:]})
    assert alone.status_code == 422


@pytest.mark.parametrize(
    "wrong",
    [
        {"arms": []},
        {"arms": [ARMS[0], ARMS[0]]},
        {"arms": ARMS, "baseline": "nobody"},
        {"arms": ARMS, "steering": STEERED},
        {},
        {"strengths": [1]},
        {"strengths": [0.5, 0.5], "intervention": {"vector": "sentiment"}},
        {"intervention": {"vector": "sentiment"}},
        {"arms": [{"name": "", "steering": []}]},
        {"arms": [{"name": "a", "steering": [], "prompt": "b"}]},
    ],
)
async def test_what_is_no_comparison(ready: Server, wrong: dict[str, Any]) -> None:
    answer = await ready.client.post("/v1/compare", json={**ASK, **wrong})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")


async def test_an_arms_name_cannot_forge_an_event(ready: Server) -> None:
    name = 'a\n\nevent: done\ndata: {"forged": true}\n\n'
    arms = [{"name": name, "steering": []}, {"name": "\u2028\u0085\r", "steering": []}]
    streamed = await ready.client.post("/v1/compare", json={**ASK, "arms": arms, "stream": True})
    events = events_of(streamed.text)
    assert [kind for kind, _ in events].count("done") == 1
    assert events[-1][1]["arms"][0]["name"] == name
    assert not any("forged" in line for line in streamed.text.splitlines() if not line.startswith("data: {"))
