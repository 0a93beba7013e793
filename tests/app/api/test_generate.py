"""POST /v1/generate: answers, seeds, streams, and what is reported of the steering."""

from typing import Any

import pytest

from steering.errors import NonfiniteActivations
from tests.app.conftest import Server, StartServer, events_of
from tests.fakes import ScriptedEngine

ASK = {"prompt": "How was the trip?", "seed": 7, "max_tokens": 8}


async def test_plain_answer(server: Server) -> None:
    answer = (await server.client.post("/v1/generate", json=ASK)).json()
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "length"
    assert len(choice["text"].split()) == 8
    assert "tokens" not in choice
    assert answer["seed"] == 7
    assert answer["usage"] == {"prompt_tokens": 17, "completion_tokens": 8, "total_tokens": 25, "cached_tokens": 0}
    assert answer["steering"].pop("record")["sampling"]["seed"] == 7
    assert answer["steering"] == {"fingerprint": "", "applied": [], "relative_dose_total": 0.0, "warnings": []}


async def test_same_seed_same_tokens_and_a_chosen_seed_is_reported(server: Server) -> None:
    free = {key: value for key, value in ASK.items() if key != "seed"}
    first = (await server.client.post("/v1/generate", json=free)).json()
    again = (await server.client.post("/v1/generate", json={**free, "seed": first["seed"]})).json()
    assert again["choices"] == first["choices"]


async def test_choices_have_seeds_of_their_own_and_the_first_is_the_single_answer(server: Server) -> None:
    many = (await server.client.post("/v1/generate", json={**ASK, "n": 4})).json()
    one = (await server.client.post("/v1/generate", json=ASK)).json()
    assert many["choices"][0] == one["choices"][0]
    assert len({choice["text"] for choice in many["choices"]}) == 4
    assert [choice["index"] for choice in many["choices"]] == [0, 1, 2, 3]
    assert many["usage"]["completion_tokens"] == 32


async def test_steering_is_reported_with_the_version_that_was_used(server: Server) -> None:
    vector = await server.register()
    steering = [{"vector": "sentiment", "strength": 0.5, "layers": [1, -2]}]
    answer = (await server.client.post("/v1/generate", json={**ASK, "steering": steering})).json()
    assert answer["steering"]["fingerprint"]
    (applied,) = answer["steering"]["applied"]
    assert applied["vector"] == "sentiment@1"
    assert applied["sha256"] == vector["sha256"]
    assert applied["layers"] == [1, 2]
    assert set(applied["relative_dose"]) == {"1", "2"}
    assert (applied["strength"], applied["unit"], applied["operation"], applied["fired"]) == (0.5, "scale", "add", True)


async def test_layers_that_share_a_dose_are_reported_with_their_strengths(server: Server) -> None:
    await server.register()
    shared = {"vector": "sentiment", "strength": 0.5, "layers": [1, 2], "share_dose": True}
    asks = [{**ASK, "steering": [one]} for one in (shared, {"vector": "sentiment", "strength": 0.5})]
    answers = [(await server.client.post("/v1/generate", json=ask)).json() for ask in asks]
    (applied,), (alone,) = (answer["steering"]["applied"] for answer in answers)
    assert (applied["share_dose"], applied["strength"], set(applied["strengths"])) == (True, 0.5, {"1", "2"})
    assert sum(applied["planned_dose"].values()) == pytest.approx(sum(alone["planned_dose"].values()))
    assert "strengths" not in alone
    again = await server.client.post("/v1/replay", json=answers[0]["steering"]["record"])
    assert again.json()["steering"]["applied"][0]["strengths"] == applied["strengths"]
    refused = await server.client.post("/v1/generate", json={**ASK, "steering": [shared | {"operation": "ablate"}]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "share_dose")


async def test_a_strength_from_a_score_is_reported_and_replayed(server: Server) -> None:
    """It names the version that was read; the policy's dose limit bounds what is not known beforehand."""
    await server.register()
    await server.register("mood")
    source = {"vector": "mood", "bias": 0.5, "activation": "relu"}
    item = {"vector": "sentiment", "strength": 0.5, "layers": [1], "strength_from": source}
    answer = (await server.client.post("/v1/generate", json={**ASK, "steering": [item]})).json()
    (applied,) = answer["steering"]["applied"]
    assert applied["strength_from"] == {**source, "vector": "mood@1"}
    assert (applied["planned_dose"], set(applied["relative_dose"])) == ({}, {"1"})
    assert set(answer["steering"]["record"]["vectors"]) == {"sentiment@1", "mood@1"}
    again = await server.client.post("/v1/replay", json=answer["steering"]["record"])
    assert again.json()["steering"]["applied"] == answer["steering"]["applied"]
    profile = await server.client.put("/v1/profiles/probed", json={"interventions": [item]})
    assert profile.status_code == 200
    used = await server.client.delete("/v1/vectors/mood")
    assert (used.status_code, used.json()["error"]["code"]) == (409, "vector_in_use")


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"strength_from": {"vector": "nobody"}}, 404, "vector"),
        ({"strength_from": {"vector": "sentiment", "activation": "elu"}}, 400, "steering.0.strength_from.activation"),
        ({"strength_from": {"vector": "sentiment", "gain": 2}}, 400, "steering.0.strength_from.gain"),
        ({"operation": "ablate", "strength_from": {"vector": "sentiment"}}, 400, "strength_from"),
        ({"unit": "relative", "strength_from": {"vector": "sentiment"}}, 400, "unit"),
    ],
)
async def test_a_strength_from_a_score_that_cannot_be_is_refused(
    server: Server, change: dict[str, Any], status: int, param: str
) -> None:
    await server.register()
    refused = await server.client.post("/v1/generate", json={**ASK, "steering": [{"vector": "sentiment", **change}]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (status, param)


@pytest.mark.parametrize("n", [1, 3])
async def test_a_stream_joins_to_the_plain_answer(server: Server, n: int) -> None:
    await server.register()
    ask = {**ASK, "n": n, "readout": ["sentiment"], "steering": [{"vector": "sentiment"}]}
    plain = (await server.client.post("/v1/generate", json=ask)).json()
    streamed = await server.client.post("/v1/generate", json={**ask, "stream": True})
    assert streamed.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = events_of(streamed.text)
    name, done = events[-1]
    assert name == "done"
    assert {key: done[key] for key in plain if key != "id"} == {key: plain[key] for key in plain if key != "id"}
    for choice in plain["choices"]:
        pieces = [data["text"] for kind, data in events if kind == "token" and data["choice"] == choice["index"]]
        assert "".join(pieces) == choice["text"]


async def test_readout_and_logprobs_list_the_tokens(server: Server) -> None:
    await server.register()
    ask = {**ASK, "readout": ["sentiment"], "logprobs": 2, "steering": [{"vector": "sentiment", "strength": 1.5}]}
    tokens = (await server.client.post("/v1/generate", json=ask)).json()["choices"][0]["tokens"]
    assert len(tokens) == 8
    assert tokens[0]["readout"] == {"sentiment": 2.0}
    assert tokens[0]["logprob"] == -1.0
    assert [one["id"] for one in tokens[0]["top_logprobs"]] == [256, 257]


async def test_default_steering_applies_unless_a_request_names_some(server: Server) -> None:
    await server.register()
    bare = (await server.client.post("/v1/generate", json=ASK)).json()
    put = await server.client.put("/v1/steering", json={"interventions": [{"vector": "sentiment", "strength": 0.25}]})
    assert put.status_code == 200, put.text
    defaulted = (await server.client.post("/v1/generate", json=ASK)).json()
    assert defaulted["steering"]["applied"][0]["strength"] == 0.25
    none = (await server.client.post("/v1/generate", json={**ASK, "steering": []})).json()
    assert none["steering"]["applied"] == []
    assert none["choices"] == bare["choices"] != defaulted["choices"]
    await server.client.delete("/v1/steering")
    assert (await server.client.get("/v1/steering")).json() == {"namespace": "shared", "interventions": None}


async def test_a_profile_and_what_is_added_after_it(server: Server) -> None:
    await server.register()
    await server.register("calm")
    await server.client.put("/v1/profiles/cheerful", json={"interventions": [{"vector": "sentiment", "strength": 0.5}]})
    steering = {"profile": "cheerful", "interventions": [{"vector": "calm", "strength": -1}]}
    answer = (await server.client.post("/v1/generate", json={**ASK, "steering": steering})).json()
    assert [one["vector"] for one in answer["steering"]["applied"]] == ["sentiment@1", "calm@1"]


async def test_names_are_resolved_once_and_a_version_can_be_asked(server: Server) -> None:
    await server.register()
    await server.register()
    for name, version in (("sentiment", "sentiment@2"), ("sentiment@1", "sentiment@1")):
        answer = (await server.client.post("/v1/generate", json={**ASK, "steering": [{"vector": name}]})).json()
        assert answer["steering"]["applied"][0]["vector"] == version


@pytest.mark.parametrize("stream", [False, True])
async def test_numbers_out_of_range_end_the_answer_loudly(server: Server, stream: bool) -> None:
    await server.register()
    ask = {**ASK, "stream": stream, "steering": [{"vector": "sentiment", "strength": 1e7}]}
    answer = await server.client.post("/v1/generate", json=ask)
    assert answer.status_code == 422
    assert answer.headers["x-should-retry"] == "false"
    assert answer.json()["error"]["code"] == NonfiniteActivations.code


async def test_a_failure_in_mid_stream_is_an_error_event_and_the_server_goes_on(start: StartServer) -> None:
    server = await start(ScriptedEngine(failure=RuntimeError("/secret/path exploded"), fail_at=3))
    streamed = await server.client.post("/v1/generate", json={**ASK, "stream": True})
    events = events_of(streamed.text)
    assert [name for name, _ in events] == ["token", "token", "token", "error"]
    assert events[-1][1]["error"]["code"] == "internal_error"
    assert "secret" not in streamed.text
    server.scripted.failure = None
    assert (await server.client.post("/v1/generate", json=ASK)).status_code == 200


async def test_a_stop_string_never_leaks(server: Server) -> None:
    text = (await server.client.post("/v1/generate", json=ASK)).json()["choices"][0]["text"]
    stop = text.split()[3]
    answer = (await server.client.post("/v1/generate", json={**ASK, "stop": stop})).json()["choices"][0]
    assert stop not in answer["text"]
    assert answer["finish_reason"] == "stop"


async def test_messages_and_token_ids_are_prompts_too(server: Server) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    assert (await server.client.post("/v1/generate", json={"messages": messages})).status_code == 200
    assert (await server.client.post("/v1/generate", json={"prompt": [72, 105]})).status_code == 200
    stray = await server.client.post("/v1/generate", json={"prompt": [72, 99_999]})
    assert (stray.status_code, stray.json()["error"]["code"]) == (400, "invalid_request")


async def test_beyond_the_context_is_rejected_before_any_work(server: Server) -> None:
    answer = await server.client.post("/v1/generate", json={"prompt": "x" * 4000, "max_tokens": 100})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert server.engine.stats().prompt_tokens == 0
    assert (await server.client.post("/v1/generate", json={"prompt": "x" * 4000})).status_code == 200
