"""The policy over HTTP: mandatory interventions act on every route, and what is stored survives and is checked."""

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
from transformers import PreTrainedTokenizerFast

from app.core.settings import Settings
from app.main import create_app
from steering.engine.api import Engine
from steering.errors import StoreUnavailable
from steering.store import open_store
from steering.store.store import Store
from tests.app.conftest import BASE_URL, Server, StartServer, state
from tests.app.operation.test_default_steering import broken_store
from tests.app.policy.conftest import generated, put_policy, scores, tiny_engine
from tests.contracts.stores import a_vector
from tests.fakes import ScriptedEngine

PUSH = {"vector": "mood", "strength": 3.0, "layers": [1]}
OWN = {"vector": "other", "strength": 1.5, "layers": [1]}
CLAMP = {"vector": "mood", "operation": "clamp", "low": 0.5, "layers": [1]}


async def test_mandatory_steering_acts_as_the_same_interventions_of_a_request_do(tiny: Server) -> None:
    """Adds read nothing, so it makes no difference that mandatory ones act on the result of the others."""
    plain = await generated(tiny)
    asked = [await generated(tiny, steering=steering) for steering in ([PUSH], [OWN, PUSH], [CLAMP])]
    for mandatory, steering, expected in ((PUSH, [], asked[0]), (PUSH, [OWN], asked[1]), (CLAMP, [], asked[2])):
        await put_policy(tiny, mandatory=[mandatory])
        found = await generated(tiny, steering=steering)
        assert found["choices"][0]["text"] == expected["choices"][0]["text"] != plain["choices"][0]["text"]
        assert found["steering"]["relative_dose_total"] == pytest.approx(expected["steering"]["relative_dose_total"])
        assert [one["vector"] for one in found["steering"]["applied"]] == ["other@1"] * len(steering)
        (applied,) = found["steering"]["mandatory"]
        assert (applied["vector"], applied["operation"]) == ("mood@1", mandatory.get("operation", "add"))
    await tiny.client.delete("/v1/policy")
    assert (await generated(tiny))["choices"] == plain["choices"]


@pytest.mark.parametrize(("bound", "warned"), [(1000.0, False), (0.001, True)])
async def test_a_large_mandatory_dose_has_its_warning_when_it_is_set_and_in_answers(
    start: StartServer, hf_byte_tokenizer: PreTrainedTokenizerFast, bound: float, warned: bool
) -> None:
    server = await start(tiny_engine(hf_byte_tokenizer), dose_bound=bound)
    directions = {"1": [1.0] * server.engine.info.d_model}
    await server.client.post("/v1/vectors", json={"name": "mood", "directions": directions})
    policy = await put_policy(server, mandatory=[{**PUSH, "unit": "relative"}])
    warnings = policy.pop("warnings", [])
    assert any(f"beyond the bound of {bound:g}: text may break" in one for one in warnings) == warned
    assert (await server.client.get("/v1/policy")).json() == policy, "which can be set again"
    assert (await generated(server))["steering"]["warnings"] == warnings


async def test_a_mandatory_clamp_bounds_what_a_request_adds(tiny: Server) -> None:
    """It reads the result of the request's own interventions, at its own layer."""
    against = {"vector": "mood", "strength": -3.0, "layers": [1]}
    assert min(await scores(tiny, steering=[against])) < 0.0
    await put_policy(tiny, mandatory=[CLAMP])
    assert min(await scores(tiny, steering=[against])) > 0.49


async def test_no_route_switches_mandatory_steering_off(tiny: Server) -> None:
    await tiny.client.put("/v1/profiles/cheerful", json={"interventions": [OWN]})
    await put_policy(tiny, mandatory=[PUSH])
    text = (await generated(tiny))["choices"][0]["text"]
    message = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 8, "seed": 1}
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/v1/generate", {"prompt": "a", "max_tokens": 8, "steering": []}),
        ("/v1/generate", {"prompt": "a", "max_tokens": 8, "steering": {"profile": "cheerful"}}),
        ("/v1/chat/completions", {"model": "tiny", **message, "steering": []}),
        ("/v1/chat/completions", {"model": "tiny@cheerful", **message}),
        ("/v1/completions", {"model": "tiny", "prompt": "a", "max_tokens": 8, "steering": []}),
        ("/v1/responses", {"model": "tiny", "input": "a", "max_output_tokens": 8, "steering": []}),
        ("/v1/responses", {"model": "tiny@cheerful", "input": "a", "max_output_tokens": 8}),
        ("/v1/messages", {"model": "tiny", **message, "steering": []}),
        ("/v1/messages", {"model": "tiny@cheerful", **message}),
        ("/api/chat", {"model": "tiny", "messages": message["messages"], "stream": False, "steering": []}),
        ("/api/generate", {"model": "tiny@cheerful", "prompt": "a", "stream": False}),
    ]
    for path, body in bodies:
        found = (await tiny.client.post(path, json=body)).json()
        assert [one["vector"] for one in found["steering"]["mandatory"]] == ["mood@1"], path
    arms = [{"name": "none", "steering": []}, {"name": "default"}, {"name": "own", "steering": [OWN]}]
    compared = (await tiny.client.post("/v1/compare", json={"prompt": "a", "max_tokens": 4, "arms": arms})).json()
    assert [arm["steering"]["mandatory"][0]["vector"] for arm in compared["arms"]] == ["mood@1"] * 3
    await tiny.client.put("/v1/steering", json={"interventions": [OWN]})
    found = await generated(tiny)
    assert [one["vector"] for one in found["steering"]["applied"]] == ["other@1"]
    assert [one["vector"] for one in found["steering"]["mandatory"]] == ["mood@1"]
    assert (await generated(tiny, steering=[]))["choices"][0]["text"] == text


async def test_a_replay_needs_the_policy_of_its_record(tiny: Server) -> None:
    await put_policy(tiny, mandatory=[PUSH])
    answer = await generated(tiny, steering=[OWN])
    record = answer["steering"]["record"]
    assert [one["vector"] for one in record["mandatory"]] == ["mood@1"]
    assert [one["vector"] for one in record["interventions"]] == ["other@1"]
    again = (await tiny.client.post("/v1/replay", json=record)).json()
    assert again["choices"][0]["text"] == answer["choices"][0]["text"]
    assert again["steering"]["mandatory"] == answer["steering"]["mandatory"]
    await tiny.client.delete("/v1/policy")
    refused = await tiny.client.post("/v1/replay", json=record)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "fingerprint")
    assert "policy" in refused.json()["error"]["message"]


async def test_a_vector_of_the_policy_is_not_deleted(tiny: Server) -> None:
    await put_policy(tiny, mandatory=[PUSH], monitors=[{"name": "m", "vector": "other", "above": 1}])
    for name in ("mood", "other"):
        refused = await tiny.client.delete(f"/v1/vectors/{name}")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "vector_in_use")
    assert (await tiny.client.delete("/v1/vectors/mood?force=true")).status_code == 204
    found = await generated(tiny, steering=[])
    assert [one["vector"] for one in found["steering"]["mandatory"]] == ["mood@1"], "it is held in memory"


REFUSED: list[tuple[dict[str, Any], int, str | None]] = [
    ({"mandatory": [{"vector": "nothing"}]}, 404, "vector"),
    ({"mandatory": [{"vector": "mood", "operation": "clamp"}]}, 400, None),
    ({"monitors": [{"name": "m", "vector": "mood"}]}, 400, "monitors.0"),
    ({"monitors": [{"name": "m", "vector": "mood", "above": 1, "below": 0}]}, 400, "monitors.0"),
    ({"monitors": [{"name": "m", "vector": "mood", "above": 1, "layer": 99}]}, 400, None),
    ({"monitors": [{"name": "M!", "vector": "mood", "above": 1}]}, 400, "monitors.0.name"),
    ({"monitors": [{"name": "m", "vector": "mood", "above": 1}] * 2}, 400, None),
    ({"monitors": [{"name": "m", "vector": "mood", "above": 1, "action": "kill"}]}, 400, "monitors.0.action"),
    ({"limits": {"max_relative_dose": -1}}, 400, "limits.max_relative_dose"),
    ({"limits": {"vectors": ["No Good"]}}, 400, "limits.vectors"),
    ({"anything": 1}, 400, "anything"),
]


async def test_a_policy_that_cannot_be_is_refused_and_changes_nothing(tiny: Server) -> None:
    before = await put_policy(tiny, mandatory=[PUSH])
    for policy, status, param in REFUSED:
        refused = await tiny.client.put("/v1/policy", json=policy)
        assert refused.status_code == status, (policy, refused.text)
        assert param is None or refused.json()["error"]["param"] == param, policy
        assert (await tiny.client.get("/v1/policy")).json() == before, policy


async def test_an_engine_that_reads_no_monitors_refuses_them(start: StartServer) -> None:
    class Blind(ScriptedEngine):
        reads_monitors = False

    server = await start(Blind())
    await server.register("mood")
    refused = await server.client.put("/v1/policy", json={"monitors": [{"name": "m", "vector": "mood", "above": 1}]})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unsupported_parameter")


async def test_traffic_needs_no_database(tiny: Server) -> None:
    await tiny.client.put("/v1/steering", json={"interventions": [OWN]})
    await put_policy(tiny, mandatory=[PUSH], monitors=[{"name": "m", "vector": "mood", "above": 1}])
    store = tiny.state.store
    tiny.state.jobs.store = broken_store()
    try:
        with pytest.raises(StoreUnavailable):
            await tiny.state.policy.refresh(tiny.state.store, tiny.state.engine)
        found = await generated(tiny)
    finally:
        tiny.state.jobs.store = store
    assert [one["vector"] for one in found["steering"]["mandatory"]] == ["mood@1"]
    assert [one["vector"] for one in found["steering"]["applied"]] == ["other@1"]


async def _served(stack: AsyncExitStack, engine: Engine, file: Path) -> httpx2.AsyncClient:
    async def store(_: Settings) -> Store:
        return await open_store(f"sqlite:///{file}")

    app = create_app(Settings(), lambda _: engine, store)
    await stack.enter_async_context(app.router.lifespan_context(app))
    await asyncio.wait_for(state(app).loaded.wait(), 30)
    client = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url=BASE_URL)
    return await stack.enter_async_context(client)


async def test_another_server_on_the_database_follows(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        one, other = [await _served(stack, ScriptedEngine(), tmp_path / "store") for _ in range(2)]
        await one.post("/v1/vectors", json={"name": "mood", "directions": {"1": [1.0] * 8}})
        for change in (one.put("/v1/policy", json={"mandatory": [{"vector": "mood"}]}), one.delete("/v1/policy")):
            await change
            since = time.monotonic()
            expected = (await one.get("/v1/policy")).json()
            while (await other.get("/v1/policy")).json() != expected:
                await asyncio.sleep(0.02)
                assert time.monotonic() - since < 30, "the other server did not follow"
            answer = (await other.post("/v1/generate", json={"prompt": "a", "max_tokens": 2})).json()
            assert ("mandatory" in answer["steering"]) is bool(expected.get("mandatory"))


async def test_a_vector_of_a_policy_of_another_server_is_not_deleted(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        one, other = [await _served(stack, ScriptedEngine(), tmp_path / "store") for _ in range(2)]
        await one.post("/v1/vectors", json={"name": "mood", "directions": {"1": [1.0] * 8}})
        assert (await one.put("/v1/policy", json={"mandatory": [{"vector": "mood"}]})).status_code == 200
        refused = await other.delete("/v1/vectors/mood")  # which has not read the policy yet
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "vector_in_use")


@pytest.mark.parametrize(
    "content",
    [
        {"mandatory": [{"vector": "gone@1"}]},
        {"mandatory": [{"vector": "mood", "operation": "kill"}]},
        {"monitors": [{"name": "m", "vector": "gone@1", "above": 1}]},
        {"surprise": 1},
    ],
)
async def test_a_stored_policy_that_cannot_be_applied_refuses_traffic(tmp_path: Path, content: dict[str, Any]) -> None:
    file = tmp_path / "store"
    store = await open_store(f"sqlite:///{file}")
    await store.shared.vectors.put(a_vector("gone"))
    await store.documents.put("policy", content)
    await store.shared.vectors.delete("gone", force=True)
    await store.close()
    async with AsyncExitStack() as stack:
        client = await _served(stack, ScriptedEngine(), file)
        ask = {"prompt": "a", "max_tokens": 2, "steering": []}
        for refused in (
            await client.post("/v1/generate", json=ask),
            await client.get("/v1/policy"),
            await client.get("/health/ready"),
        ):
            error = refused.json()["error"]
            assert (refused.status_code, error["code"]) == (503, "policy_invalid")
            assert refused.headers["x-should-retry"] == "false", "waiting mends nothing"
            assert "Retry-After" not in refused.headers
            assert "DELETE /v1/policy" in error["message"]
        assert (await client.get("/health/live")).status_code == 200
        assert (await client.delete("/v1/policy")).status_code == 204
        assert (await client.post("/v1/generate", json=ask)).status_code == 200


async def test_a_policy_survives_a_restart(tmp_path: Path, hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    policy = {"mandatory": [{"vector": "mood"}], "monitors": [{"name": "m", "vector": "mood", "above": 1}]}
    file = tmp_path / "store"
    async with AsyncExitStack() as stack:
        engine = tiny_engine(hf_byte_tokenizer)
        client = await _served(stack, engine, file)
        await client.post("/v1/vectors", json={"name": "mood", "directions": {"1": [1.0] * engine.info.d_model}})
        stored = (await client.put("/v1/policy", json=policy)).json()
        assert stored["mandatory"][0]["vector"] == stored["monitors"][0]["vector"] == "mood@1"
    async with AsyncExitStack() as stack:
        client = await _served(stack, tiny_engine(hf_byte_tokenizer), file)
        assert (await client.get("/v1/policy")).json() == stored
        found = (await client.post("/v1/generate", json={"prompt": "a", "max_tokens": 2, "steering": []})).json()
        assert found["steering"]["mandatory"][0]["vector"] == "mood@1"


async def test_changes_are_in_the_audit_log(start: StartServer) -> None:
    server = await start()
    await put_policy(server, limits={"own_steering": "none"})
    await server.client.delete("/v1/policy")
    entries = (await server.client.get("/v1/audit")).json()["data"]
    assert [one["action"] for one in entries] == ["DELETE /v1/policy", "PUT /v1/policy"]
