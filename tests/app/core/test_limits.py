"""Every limit plus one is refused with 400 before any work; a full server is refused with 429 at once."""

import asyncio
from typing import Any

import pytest

from app.core.admission import Admission, Budget, RateLimits
from app.core.settings import Settings
from steering.errors import LimitExceeded, Overloaded
from tests.app.conftest import Server, StartServer
from tests.fakes import ScriptedEngine
from tests.polling import until

ARM: dict[str, list[object]] = {"steering": []}
LIMITS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "max_n": ("/v1/generate", {"prompt": "a", "n": 2}, {"prompt": "a", "n": 3}),
    "max_stops": ("/v1/generate", {"prompt": "a", "stop": ["x"] * 2}, {"prompt": "a", "stop": ["x"] * 3}),
    "max_stop_characters": ("/v1/generate", {"prompt": "a", "stop": "xx"}, {"prompt": "a", "stop": "xxx"}),
    "max_top_logprobs": ("/v1/generate", {"prompt": "a", "logprobs": 2}, {"prompt": "a", "logprobs": 3}),
    "max_interventions": (
        "/v1/generate",
        {"prompt": "a", "steering": [{"vector": "v"}] * 2},
        {"prompt": "a", "steering": [{"vector": "v"}] * 3},
    ),
    "max_readouts": (
        "/v1/generate",
        {"prompt": "a", "readout": ["v", "v@1"]},
        {"prompt": "a", "readout": ["v", "v@1", "v"]},
    ),
    "max_messages": (
        "/v1/generate",
        {"messages": [{"role": "user", "content": "a"}] * 2},
        {"messages": [{"role": "user", "content": "a"}] * 3},
    ),
    "max_arms": (
        "/v1/compare",
        {"prompt": "a", "arms": [{"name": "a", **ARM}, {"name": "b", **ARM}]},
        {"prompt": "a", "arms": [{"name": "a", **ARM}, {"name": "b", **ARM}, {"name": "c", **ARM}]},
    ),
    "max_texts": (
        "/v1/readout",
        {"texts": ["a"] * 2, "vectors": ["v"]},
        {"texts": ["a"] * 3, "vectors": ["v"]},
    ),
    "max_predictions": (
        "/v1/logit-lens",
        {"prompt": "a", "layers": [0], "top_k": 2},
        {"prompt": "a", "layers": [0], "top_k": 3},
    ),
    "max_pairs": (
        "/v1/vectors/extract?wait=true",
        {"name": "x", "holdout": 0, "pairs": [{"positive": f"good {i}", "negative": f"bad {i}"} for i in range(2)]},
        {"name": "x", "holdout": 0, "pairs": [{"positive": f"good {i}", "negative": f"bad {i}"} for i in range(3)]},
    ),
}


@pytest.mark.parametrize("limit", LIMITS)
async def test_each_limit_plus_one_is_refused(start: StartServer, limit: str) -> None:
    settings: dict[str, Any] = {limit: 2}
    server = await start(**settings)
    await server.register("v")
    path, within, beyond = LIMITS[limit]
    fine = await server.client.post(path, json=within)
    assert fine.status_code in (200, 201), fine.text
    refused = await server.client.post(path, json=beyond)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "limit_exceeded")


async def test_the_bound_on_activations_counts_texts_layers_and_width(start: StartServer) -> None:
    body = {"name": "x", "layers": [1], "pairs": [{"positive": "good", "negative": "bad"}] * 4, "holdout": 0}
    for bound, status in ((8 * 8, 201), (8 * 8 - 1, 400)):
        server = await start(max_activations=bound)
        answer = await server.client.post("/v1/vectors/extract?wait=true", json=body)
        assert answer.status_code == status, answer.text


async def test_capabilities_show_every_limit(server: Server) -> None:
    shown = (await server.client.get("/v1/capabilities")).json()["limits"]
    assert {name for name in Settings.model_fields if name.startswith("max_")} <= set(shown)
    assert shown["max_n"] == 8


async def test_a_full_server_answers_429_at_once_and_opens_again(start: StartServer) -> None:
    gate = asyncio.Event()
    server = await start(ScriptedEngine(gate=gate), max_running=1, max_waiting=1)
    ask = {"prompt": "a", "max_tokens": 1}
    running = [asyncio.create_task(server.client.post("/v1/generate", json=ask)) for _ in range(2)]
    await until(lambda: server.state.rows.reserved == 2)
    for path, body in (("/v1/generate", ask), ("/v1/generate", {**ask, "stream": True}), ("/v1/compare", {})):
        refused = await server.client.post(path, json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
        assert float(refused.headers["retry-after"]) > 0
    assert (await server.client.get("/health/ready")).status_code == 200
    gate.set()
    assert [answer.status_code for answer in await asyncio.gather(*running)] == [200, 200]
    assert server.state.rows.reserved == 0
    assert (await server.client.post("/v1/generate", json=ask)).status_code == 200


async def test_an_engine_that_is_full_is_429_too(start: StartServer) -> None:
    gate = asyncio.Event()
    server = await start(ScriptedEngine(gate=gate, max_running=1, max_waiting=0))
    first = asyncio.create_task(server.client.post("/v1/generate", json={"prompt": "a"}))
    await until(lambda: server.engine.stats().running == 1)
    for stream in (False, True):
        refused = await server.client.post("/v1/generate", json={"prompt": "a", "stream": stream})
        assert "overloaded" in refused.text
        assert refused.status_code == 429
        assert float(refused.headers["retry-after"]) > 0
    gate.set()
    await first


async def test_admission_counts_rows_and_returns_them() -> None:
    budget, memory = Budget(3, "full"), Budget(1, "full")
    rows = Admission(budget, memory, memory, RateLimits())
    rows.take(1)
    rows.take(3)
    rows.take(2)
    assert budget.reserved == 3
    other = Admission(budget, memory, memory, RateLimits())
    with pytest.raises(Overloaded):
        other.take(1)
    rows.close()
    rows.close()
    assert budget.reserved == 0
    with pytest.raises(LimitExceeded, match="4 rows at once; this server has 3"):
        other.take(4)
    assert budget.reserved == 0
