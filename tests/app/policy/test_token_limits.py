"""Tokens per minute: what a request takes is counted once, as a whole, and only where it is not refused for another reason."""

import re
from typing import Any

import pytest

from tests.app.api.test_batch import finished, output, started
from tests.app.conftest import StartServer
from tests.app.policy.test_key_limits import EXTRACT
from tests.app.policy.test_keys import ADMIN, BEARER, ask, bearer, code, created
from tests.fakes import ScriptedEngine

TEN: dict[str, Any] = {"prompt": "a", "max_tokens": 9}
"""A request that takes ten tokens."""
SCORE: dict[str, Any] = {"items": [{"prompt": "abc", "choices": ["d", "ef"]}, {"prompt": "a", "choices": ["b"]}]}
SCORE_TOKENS = (3 + 1) + (3 + 2) + (1 + 1)
TEXTS = ["one text", "another text", "a third", "a fourth one"]
READINGS: dict[str, dict[str, Any]] = {
    "/v1/logit-lens": {"prompt": "some text", "layers": [1]},
    "/v1/latent-space": {"texts": TEXTS, "layers": [1]},
    "/v1/clusters": {"texts": TEXTS, "layer": 1, "clusters": 2},
    "/v1/readout": {"texts": TEXTS, "vectors": ["mood"]},
    "/v1/explain": {"texts": TEXTS},
    "/v1/score": {"texts": TEXTS},
    "/v1/activations": {"texts": TEXTS, "layers": [1]},
    "/v1/embeddings": {"model": "scripted", "input": TEXTS},
}


@pytest.mark.parametrize("path", ["/v1/generate", "/v1/compare"])
async def test_a_request_with_more_answers_than_fit_uses_no_tokens(start: StartServer, path: str) -> None:
    server = await start(api_keys=ADMIN, max_running=1, max_waiting=1)
    server.client.headers.update(BEARER)
    key = await created(server, limits={"tokens_per_minute": 20})
    beyond = {"prompt": "a", "max_tokens": 2, "n": 4} | ({"steering": []} if path == "/v1/compare" else {})
    for _ in range(3):
        assert code(await server.client.post(path, json=beyond, headers=bearer(key["key"]))) == (400, "limit_exceeded")
    assert (await ask(server, key, prompt="a", max_tokens=19)).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_a_comparison_with_an_unknown_baseline_uses_no_tokens(start: StartServer, stream: bool) -> None:
    server = await start(api_keys=ADMIN)
    server.client.headers.update(BEARER)
    key = await created(server, limits={"tokens_per_minute": 10})
    body = {"prompt": "a", "max_tokens": 2, "arms": [{"name": "base", "steering": []}], "stream": stream}
    refused = await server.client.post("/v1/compare", json={**body, "baseline": "nobody"}, headers=bearer(key["key"]))
    assert (code(refused), refused.json()["error"]["param"]) == ((400, "invalid_request"), "baseline")
    assert (await ask(server, key, **TEN)).status_code == 200, "the comparison was not counted"


async def test_the_prompts_of_a_completion_are_counted_together(start: StartServer) -> None:
    server = await start(api_keys=ADMIN)
    server.client.headers.update(BEARER)
    key = await created(server, limits={"tokens_per_minute": 10})
    body = {"model": "scripted", "prompt": ["a", "b", "c"], "max_tokens": 3}
    refused = await server.client.post("/v1/completions", json=body, headers=bearer(key["key"]))
    assert code(refused) == (429, "rate_limited")
    assert "takes 12 tokens" in refused.json()["error"]["message"]
    assert refused.headers["x-should-retry"] == "false", "no wait would help"
    assert (await ask(server, key, **TEN)).status_code == 200, "the prompts that would have fitted were not counted"


async def test_a_completion_with_an_invalid_prompt_uses_no_tokens(start: StartServer) -> None:
    server = await start(api_keys=ADMIN)
    server.client.headers.update(BEARER)
    key = await created(server, limits={"tokens_per_minute": 10})
    length = server.engine.info.context_length
    body = {"model": "scripted", "prompt": ["a", "b" * length], "max_tokens": 3}
    refused = await server.client.post("/v1/completions", json=body, headers=bearer(key["key"]))
    assert code(refused) == (400, "context_length_exceeded")
    assert (await ask(server, key, **TEN)).status_code == 200


async def test_the_prompt_of_an_item_counts_for_each_of_its_choices(start: StartServer) -> None:
    server = await start(api_keys=ADMIN)
    server.client.headers.update(BEARER)
    key = await created(server, limits={"tokens_per_minute": SCORE_TOKENS})
    invalid = {"items": [*SCORE["items"], {"prompt": "a", "choices": ["b" * server.engine.info.context_length]}]}
    refused = await server.client.post("/v1/score", json=invalid, headers=bearer(key["key"]))
    assert code(refused) == (400, "context_length_exceeded"), "no token was counted"
    assert (await server.client.post("/v1/score", json=SCORE, headers=bearer(key["key"]))).status_code == 200
    assert code(await ask(server, key, **TEN)) == (429, "rate_limited"), "all tokens were counted"
    less = await created(server, name="less", limits={"tokens_per_minute": SCORE_TOKENS - 1})
    refused = await server.client.post("/v1/score", json=SCORE, headers=bearer(less["key"]))
    assert code(refused) == (429, "rate_limited")
    assert f"takes {SCORE_TOKENS} tokens" in refused.json()["error"]["message"]


async def test_each_line_of_a_batch_of_scores_counts_its_tokens(start: StartServer) -> None:
    server = await start(api_keys=ADMIN)
    server.client.headers.update(BEARER)
    key = await created(server, scopes=["generate", "read"], limits={"tokens_per_minute": SCORE_TOKENS})
    server.client.headers.update(bearer(key["key"]))
    twice = {"items": [*SCORE["items"], *SCORE["items"]]}
    job = await started(server, twice, SCORE, path="/v1/score/batch")
    assert (await finished(server, job))["result"] == {"requests": 2, "succeeded": 1, "failed": 1}
    found = await output(server, job)
    assert [one.get("error", {}).get("code") for one in found] == ["rate_limited", None]
    assert code(await ask(server, key, **TEN)) == (429, "rate_limited"), "the tokens of the line were counted"


async def test_a_wait_that_helps_may_be_retried(start: StartServer) -> None:
    server = await start(api_keys=ADMIN)
    server.client.headers.update(BEARER)
    key = await created(server, limits={"requests_per_minute": 1})
    answers = [await ask(server, key) for _ in range(3)]  # the minute may end between two of them
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert "x-should-retry" not in refused.headers


@pytest.mark.parametrize("path", READINGS)
async def test_every_route_that_reads_texts_counts_their_tokens(start: StartServer, path: str) -> None:
    server = await start(api_keys=ADMIN)
    server.client.headers.update(BEARER)
    await server.register("mood")
    key = await created(server, limits={"tokens_per_minute": 1})
    refused = await server.client.post(path, json=READINGS[path], headers=bearer(key["key"]))
    assert code(refused) == (429, "rate_limited")


async def test_a_job_that_is_refused_since_the_key_has_too_many_uses_no_tokens(start: StartServer) -> None:
    server = await start(ScriptedEngine(token_seconds=0.002), api_keys=ADMIN)
    server.client.headers.update(BEARER)
    poor = await created(server, name="poor", scopes=["write"], limits={"tokens_per_minute": 1})
    told = await server.client.post("/v1/vectors/extract", json=EXTRACT, headers=bearer(poor["key"]))
    (tokens,) = map(int, re.findall(r"takes (\d+) tokens", told.text))
    limits = {"tokens_per_minute": 2 * tokens, "jobs": 1}
    key = await created(server, scopes=["write", "generate"], limits=limits)
    accepted = await server.client.post("/v1/vectors/extract", json=EXTRACT, headers=bearer(key["key"]))
    assert accepted.status_code == 202
    refused = await server.client.post("/v1/vectors/extract", json=EXTRACT, headers=bearer(key["key"]))
    assert "unfinished jobs" in refused.text
    assert (await ask(server, key, prompt="a", max_tokens=min(tokens - 1, 256))).status_code == 200


async def test_a_job_that_is_refused_since_its_record_finds_no_room_uses_no_tokens(start: StartServer) -> None:
    server = await start(api_keys=ADMIN)
    server.client.headers.update(BEARER)
    limits = {"tokens_per_minute": 10, "storage_bytes": 0}
    key = await created(server, scopes=["write", "generate"], limits=limits)
    body = {"name": "mood", "pairs": [{"positive": "ab", "negative": "cd"}, {"positive": "ef", "negative": "gh"}]}
    for query in ("", "?wait=true"):
        refused = await server.client.post(f"/v1/vectors/extract{query}", json=body, headers=bearer(key["key"]))
        assert code(refused) == (507, "storage_full")
    assert "steering_key_tokens_total{" not in (await server.client.get("/metrics")).text
    assert (await ask(server, key, **TEN)).status_code == 200
