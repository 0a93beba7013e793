"""Monitors over HTTP: flags and stops are where the scores pass the bound, on every route, and what was measured is reported."""

import asyncio
import re
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI

from tests.app.conftest import BASE_URL, Server, events_of
from tests.app.policy.conftest import generated, put_policy, scores


def watch(bound: float, **fields: Any) -> dict[str, Any]:
    """A monitor of `mood`, raised above a bound."""
    return {"name": "watch", "vector": "mood", "above": bound, "action": "flag", **fields}


def middle(found: list[float]) -> float:
    """A bound with as many scores on each side, and none at it."""
    ordered = sorted(found)
    return (ordered[len(found) // 2 - 1] + ordered[len(found) // 2]) / 2


def record_high(found: list[float]) -> tuple[int, float]:
    """A token whose score is higher than all before it, not the first, and a bound between."""
    at = max(range(2, len(found) - 1), key=lambda index: found[index] - max(found[:index]))
    assert found[at] > max(found[:at]), "choose another seed"
    return at, (found[at] + max(found[:at])) / 2


async def test_flags_are_where_the_readout_passes_the_bound(tiny: Server) -> None:
    found = await scores(tiny)
    bound = middle(found)
    await put_policy(tiny, monitors=[watch(bound), watch(bound, name="silent", action="count")])
    (choice, second) = (await generated(tiny, n=2, readout=["mood"]))["choices"]
    expected = [index for index, score in enumerate(found) if score > bound]
    (flag,) = choice["flags"]
    assert flag["tokens"] == expected
    assert flag["score"] == pytest.approx(max(found), abs=1e-4)
    assert (flag["monitor"], flag["vector"], flag["above"], flag["action"]) == ("watch", "mood@1", bound, "flag")
    assert [t["text"] for t in choice["tokens"]] == [
        t["text"] for t in (await generated(tiny, readout=["mood"]))["choices"][0]["tokens"]
    ]
    raised = [i for i, token in enumerate(second["tokens"]) if token["readout"]["mood"] > bound]
    assert [flag["tokens"] for flag in second["flags"]] == ([raised] if raised else [])


async def test_a_stream_names_the_monitors_at_their_tokens(tiny: Server) -> None:
    found = await scores(tiny)
    bound = middle(found)
    await put_policy(tiny, monitors=[watch(bound)])
    ask = {"prompt": "the road", "max_tokens": 24, "temperature": 1.0, "seed": 5, "stream": True}
    *pieces, (name, last) = events_of((await tiny.client.post("/v1/generate", json=ask)).text)
    assert name == "done"
    named = [piece["index"] for _, piece in pieces if piece.get("monitors") == ["watch"]]
    assert named == last["choices"][0]["flags"][0]["tokens"] == [i for i, one in enumerate(found) if one > bound]


async def test_a_stop_ends_the_answer_with_its_token_on_every_route(tiny: Server) -> None:
    found = await scores(tiny)
    at, bound = record_high(found)
    free = (await generated(tiny, readout=["mood"]))["choices"][0]["tokens"]
    await put_policy(tiny, monitors=[watch(bound, action="stop")])
    answer = await generated(tiny, readout=["mood"])
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "monitor"
    assert [token["id"] for token in choice["tokens"]] == [token["id"] for token in free[: at + 1]]
    assert choice["flags"][0]["tokens"] == [at]
    assert answer["usage"]["completion_tokens"] == at + 1
    ask: dict[str, Any] = {"prompt": "the road", "max_tokens": 24, "temperature": 1.0, "seed": 5}
    *_, (_, last) = events_of((await tiny.client.post("/v1/generate", json={**ask, "stream": True})).text)
    again = (await tiny.client.post("/v1/replay", json=answer["steering"]["record"])).json()
    arms = [{"name": "one", "steering": []}, {"name": "two", "steering": []}]
    compared = (await tiny.client.post("/v1/compare", json={**ask, "arms": arms})).json()
    for other in (last, again, *compared["arms"]):
        (one,) = other["choices"]
        assert (one["text"], one["finish_reason"]) == (choice["text"], "monitor")


async def test_a_prompt_monitor_stops_before_the_first_token(tiny: Server) -> None:
    await put_policy(tiny, monitors=[watch(-1e6, at="prompt", action="stop")])
    answer = await generated(tiny)
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("", "monitor")
    assert (choice["flags"][0]["at"], choice["flags"][0]["tokens"]) == ("prompt", [])
    assert answer["usage"]["completion_tokens"] == 0
    arms = [{"name": "one", "steering": []}, {"name": "two", "steering": [{"vector": "mood"}]}]
    compared = await tiny.client.post("/v1/compare", json={"prompt": "the road", "arms": arms, "readout": ["mood"]})
    assert compared.status_code == 200, compared.text
    assert {arm["choices"][0]["finish_reason"] for arm in compared.json()["arms"]} == {"monitor"}


async def test_the_openai_client_sees_a_content_filter(tiny: Server) -> None:
    transport = httpx2.ASGITransport(app=tiny.app)
    async with AsyncOpenAI(
        base_url=f"{BASE_URL}/v1", api_key="none", max_retries=0, http_client=httpx2.AsyncClient(transport=transport)
    ) as client:
        request: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "seed": 3}
        await put_policy(tiny, monitors=[watch(-1e6, action="stop")])
        answer = await client.chat.completions.create(**request, max_tokens=8, n=2)
        assert [choice.finish_reason for choice in answer.choices] == ["content_filter"] * 2
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 2
        assert answer.choices[0].model_extra is not None
        assert answer.choices[0].model_extra["flags"][0]["monitor"] == "watch"
        chunks = [one async for one in await client.chat.completions.create(**request, max_tokens=8, stream=True)]
        assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == [
            "content_filter"
        ]
        text = await client.completions.create(model="tiny", prompt="a", max_tokens=8, seed=3)
        assert text.choices[0].finish_reason == "content_filter"


async def test_what_a_monitor_measured_is_reported_and_counted(tiny: Server) -> None:
    found = await scores(tiny)
    bound = middle(found)
    raised = sum(score > bound for score in found)
    await put_policy(tiny, monitors=[watch(bound, action="count"), watch(0.0, name="asked", at="prompt")])
    headers = {"x-request-id": "watched-1"}
    ask = {"prompt": "the road", "max_tokens": 24, "temperature": 1.0, "seed": 5}
    answer = await tiny.client.post("/v1/generate", json=ask, headers=headers)
    assert "watch" not in [flag["monitor"] for flag in answer.json()["choices"][0].get("flags", [])]
    one = (await tiny.client.get("/v1/monitors/watch")).json()
    assert (one["scores"], one["raised"], one["answers"]) == (24, raised, 1)
    assert one["mean"] == pytest.approx(sum(found) / 24, abs=1e-4)
    assert sum(one["distribution"]["counts"]) == 24
    assert len(one["distribution"]["counts"]) == len(one["distribution"]["edges"]) + 1
    (latest,) = one["latest"]
    first = next(index for index, score in enumerate(found) if score > bound)
    assert (latest["request_id"], latest["token"]) == ("watched-1", first)
    assert latest["score"] == pytest.approx(found[first], abs=1e-4)
    assert sum(hour["scores"] for hour in one["hours"]) == 24
    listed = (await tiny.client.get("/v1/monitors")).json()["data"]
    assert [(item["name"], item["scores"]) for item in listed] == [("watch", 24), ("asked", 1)]
    metrics = (await tiny.client.get("/metrics")).text
    assert f'steering_monitor_raised_total{{action="count",monitor="watch"}} {float(raised)}' in metrics
    assert 'steering_monitor_scores_total{monitor="watch"} 24.0' in metrics
    assert re.search(r'steering_monitor_score_bucket\{le="\+Inf",monitor="asked"\} 1.0', metrics)
    unknown = await tiny.client.get("/v1/monitors/nothing")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "monitor_not_found")


async def test_counts_stay_with_what_is_measured(tiny: Server) -> None:
    await put_policy(tiny, monitors=[watch(0.0)])
    await generated(tiny)
    await put_policy(tiny, monitors=[watch(0.5)])
    assert (await tiny.client.get("/v1/monitors/watch")).json()["scores"] == 24, "another bound, the same scores"
    await put_policy(tiny, monitors=[watch(0.5, vector="other")])
    assert (await tiny.client.get("/v1/monitors/watch")).json()["scores"] == 0
    await tiny.client.delete("/v1/policy")
    assert (await tiny.client.get("/v1/monitors")).json()["data"] == []


async def test_the_scores_of_a_client_that_left_are_counted(tiny: Server) -> None:
    await put_policy(tiny, monitors=[watch(0.0)])
    ask = asyncio.create_task(generated(tiny, max_tokens=200))
    while tiny.engine.stats().generated_tokens < 5:  # noqa: ASYNC110 - counted by the engine
        await asyncio.sleep(0.001)  # without a pause this loop keeps the interpreter lock from the engine's thread
    ask.cancel()
    await asyncio.gather(ask, return_exceptions=True)
    assert (await tiny.client.get("/v1/monitors/watch")).json()["scores"] >= 5
