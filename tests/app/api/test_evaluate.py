"""POST /v1/evaluations: the planted concept moves text, the result may be kept on the card, and a job can be left."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import pytest

from steering.engine.api import GenerationRequest, TokenEvent
from steering.engine.transformers.engine import TransformersEngine
from steering.model.loading import LoadedModel
from steering.store.store import NamespaceStore
from steering.vectors import ConceptVector, VectorSummary
from tests.app.api.evaluation_bodies import DOSE, SWEEP, WRITING
from tests.app.changed_store import ChangedStore, changed
from tests.app.conftest import Server, StartServer, events_of
from tests.fakes import ScriptedEngine
from tests.polling import until
from tests.steering.workflows.linear import GAIN, LinearEngine


@pytest.fixture
async def linear(start: StartServer) -> Server:
    """A server over the model whose answers are known by heart, with its concept as the vector `mood`."""
    engine = LinearEngine()
    server = await start(engine)
    await planted(server, engine)
    return server


async def planted(server: Server, engine: LinearEngine, name: str = "mood") -> None:
    layers = ("1", "2", "3")
    body = {
        "name": name,
        "directions": dict.fromkeys(layers, engine.concept.tolist()),
        "scale": dict.fromkeys(layers, GAIN),
    }
    answer = await server.client.post("/v1/vectors", json=body)
    assert answer.status_code == 201, answer.text


async def evaluated(server: Server, body: dict[str, Any]) -> dict[str, Any]:
    """Evaluates while waiting."""
    answer = await server.client.post("/v1/evaluations?wait=true", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_the_planted_concept_moves_with_the_strength(linear: Server) -> None:
    found = await evaluated(linear, DOSE)
    assert (found["kind"], found["vector"], found["layers"]) == ("dose_response", "mood@1", [2])
    down, zero, up = found["points"]
    assert (down["strength"], zero["strength"], up["strength"]) == (-1.0, 0.0, 1.0)
    assert down["concept_score"] < -0.2 < zero["concept_score"] == 0.0 < 0.2 < up["concept_score"]
    low, high = up["concept_interval"]
    assert low <= up["concept_score"] <= high
    assert abs(up["random_score"]) < up["concept_score"]
    assert up["advantage"]["mean"] < up["concept_score"], "what chance reaches is taken off"
    assert zero["advantage"] is None
    assert up["relative_dose"] > 0.0 < up["kl_neutral"]
    assert (found["anti_steered"], found["saved"]) == (0.0, None)
    assert [one["id"] for one in (await linear.client.get("/v1/vectors")).json()["data"]] == ["mood@1"]


async def test_a_result_is_kept_on_the_card_of_the_next_version(linear: Server) -> None:
    found = await evaluated(linear, {**DOSE, "save": True})
    kept = (await linear.client.get("/v1/vectors/mood")).json()
    assert found["saved"] == kept
    assert kept["id"] == "mood@2"
    points = kept["quality"]["dose_response"]
    assert points == [{name: point[name] for name in points[0]} for point in found["points"]]
    assert kept["quality"]["anti_steered"] == found["anti_steered"]
    assert kept["recommended"] == found["recommended"]
    assert kept["recommended"] == {
        "layers": [2],
        "strength": [1.0, 1.0],
        "negative": [-1.0, -1.0],
        "strengths_to_try": None,
        "basis": "measured",
        "margin": min(point["advantage"]["interval"][0] for point in found["points"] if point["strength"]),
    }
    assert kept["provenance"]["dose_response"]["vector"] == "mood@1"
    first = (await linear.client.get("/v1/vectors/mood@1")).json()
    assert first["quality"] is None, "a version never changes"
    directions = [(await linear.client.get(f"/v1/vectors/mood@{i}/directions")).json() for i in (1, 2)]
    assert directions[0] == directions[1]


async def test_an_older_version_is_measured_but_not_saved_over_the_newest(linear: Server) -> None:
    await planted(linear, LinearEngine())
    answer = await linear.client.post("/v1/evaluations", json={**DOSE, "vector": "mood@1", "save": True})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "save")
    assert "mood@2" in error["message"]
    assert (await evaluated(linear, {**DOSE, "vector": "mood@1"}))["vector"] == "mood@1"


async def test_a_version_that_came_meanwhile_is_not_saved_over(start: StartServer) -> None:
    gate = asyncio.Event()
    engine = HeldEngine(gate)
    server = await start(engine)
    await planted(server, engine)
    engine.held = True
    work = asyncio.create_task(evaluated(server, {**DOSE, "save": True}))
    await until(lambda: engine.running > 0)
    await planted(server, engine)
    gate.set()
    found = await work
    assert found["saved"] is None
    assert (
        "the newest version is mood@2 of namespace 'shared', not mood@1 of namespace 'shared'" in found["warnings"][-1]
    )


async def test_a_version_that_comes_just_before_the_write_is_not_hidden(linear: Server) -> None:
    def overtaken(found: NamespaceStore) -> NamespaceStore:
        async def put(vector: ConceptVector, after: VectorSummary | None = None) -> ConceptVector:
            await found.vectors.put(vector)
            return await found.vectors.put(vector, after)

        return replace(found, vectors=changed(found.vectors, put=put))

    linear.state.jobs.store = ChangedStore(linear.state.jobs.store, overtaken)
    found = await evaluated(linear, {**DOSE, "save": True})
    assert found["saved"] is None
    assert (
        "the newest version is mood@2 of namespace 'shared', not mood@1 of namespace 'shared'" in found["warnings"][-1]
    )
    assert (await linear.client.get("/v1/vectors/mood")).json()["id"] == "mood@2"


class HeldEngine(LinearEngine):
    """Generates nothing before the gate opens, once `held`."""

    def __init__(self, gate: asyncio.Event) -> None:
        super().__init__()
        self.gate, self.held = gate, False

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        """See Engine.generate."""
        self.running += 1
        try:
            if self.held:
                await self.gate.wait()
            async for event in super().generate(request):
                yield event
        finally:
            self.running -= 1


async def test_a_layer_sweep_finds_where_the_concept_is_written(linear: Server) -> None:
    found = await evaluated(linear, SWEEP)
    assert (found["kind"], found["vector"]) == ("layer_sweep", "mood@1")
    chosen = [one for one in found["points"] if one["split"] == "validation"]
    assert [(one["layer"], one["strength"]) for one in chosen] == [(1, 1.0), (2, 1.0), (3, 1.0)]
    assert all(one["moved"]["mean"] > 0.0 for one in chosen[:2])
    assert found["points"][3:] == [found["best"]], "reported on the other prompts"
    assert found["best"] in found["points"]
    recommended = found["recommended"]
    assert (recommended["layers"], recommended["strength"]) == ([found["best"]["layer"]], [1.0, 1.0])


async def test_as_a_job_it_is_watched_to_the_same_result(linear: Server) -> None:
    job = (await linear.client.post("/v1/evaluations", json=SWEEP)).json()
    assert (job["kind"], job["status"]) == ("layer_sweep", "queued")
    events = events_of((await linear.client.get(f"/v1/jobs/{job['id']}/events")).text)
    name, last = events[-1]
    assert (name, last["status"]) == ("done", "succeeded")
    assert last["result"] == await evaluated(linear, SWEEP)
    done = [data["progress"]["done"] for kind, data in events if kind == "progress"]
    assert done == sorted(done)
    assert len(set(done)) > 3
    assert last["progress"]["done"] == last["progress"]["total"]
    assert (await linear.client.get(f"/v1/jobs/{job['id']}")).json() == last
    record = await linear.state.store.shared.jobs.get(job["id"])
    assert dict(record.request) == {"kind": "layer_sweep", "vector": "mood", "strengths": [1.0], **WRITING}


async def test_a_cancelled_evaluation_frees_its_rows_and_keeps_nothing(start: StartServer) -> None:
    server = await start(ScriptedEngine(token_seconds=0.05))
    await server.register("mood")
    job = (await server.client.post("/v1/evaluations", json={**DOSE, "save": True})).json()
    await until(lambda: server.engine.stats().running > 1)
    assert server.state.rows.reserved == 0, "a job takes no place of live traffic"
    cancelled = (await server.client.delete(f"/v1/jobs/{job['id']}")).json()
    assert cancelled["status"] == "cancelled"
    assert server.engine.stats().running == 0
    assert (await server.client.get("/v1/vectors/mood")).json()["version"] == 1


async def test_on_a_model_it_measures_doses_and_a_cancelled_one_frees_its_rows(
    start: StartServer, tiny_loaded: LoadedModel
) -> None:
    server = await start(TransformersEngine(tiny_loaded))
    directions = {"1": [1.0, -1.0] * 16}
    assert (await server.client.post("/v1/vectors", json={"name": "mood", "directions": directions})).status_code == 201
    found = await evaluated(server, {**DOSE, "strengths": [0.5, 1], "max_tokens": 8})
    doses = [point["relative_dose"] for point in found["points"]]
    assert doses[0] == 0.0 < doses[1] < doses[2]
    body = {**DOSE, "prompts": ["the road"] * 40, "max_tokens": 200}
    job = (await server.client.post("/v1/evaluations", json=body)).json()
    await until(lambda: server.state.engine.stats().background_running > 4)
    assert (await server.client.delete(f"/v1/jobs/{job['id']}")).json()["status"] == "cancelled"
    await until(
        lambda: server.state.engine.stats().background_running == server.state.engine.stats().background_waiting == 0
    )


async def test_prompts_of_starter_concepts_and_conversations_may_be_used(start: StartServer) -> None:
    server = await start(ScriptedEngine(length=2))
    await server.register("mood")
    chat = [{"role": "user", "content": "How was it?"}]
    for source in ({"concept": "sentiment"}, {"prompts": [chat, "so"]}, {}):
        body = {"kind": "dose_response", "vector": "mood", "strengths": [0.5], "random_directions": 0, **source}
        assert len((await evaluated(server, body))["points"]) == 2


ANSWERED = [{"role": "user", "content": "How was it?"}, {"role": "assistant", "content": "Fine."}]


@pytest.mark.parametrize(
    "body",
    [
        {"kind": "dose_response", "strengths": [0.5], "random_directions": 0, "prompts": [ANSWERED]},
        {"kind": "layer_sweep", "strengths": [0.5], "prompts": [ANSWERED] * 2},
        {"kind": "calibration", "layers": [1]},
        {"kind": "report", "strength": 0.5, "seeds": [0], "side_effects": ["mood"], "prompts": [ANSWERED] * 2},
    ],
    ids=lambda body: str(body["kind"]),
)
async def test_a_conversation_that_ends_with_an_answer_is_answered_by_another_message(
    start: StartServer, body: dict[str, Any]
) -> None:
    server = await start(ScriptedEngine(length=2))
    await server.register("mood")
    await evaluated(server, {"vector": "mood", "neutral": [ANSWERED], "max_tokens": 4, **body})
    engine = server.scripted
    asked = [engine.tokenizer.decode(engine.tokenizer.encode(one.prompt)) for one in engine.requests]
    assert asked
    assert [text for text in asked if not text.endswith("<assistant>Fine.\n<assistant>")] == []


async def test_a_calibrated_vector_is_steered_by_shares_of_one_nat(linear: Server) -> None:
    found = await evaluated(linear, {"kind": "calibration", "vector": "mood", "layers": [2], "save": True})
    (point,) = found["points"]
    assert found["saved"]["id"] == "mood@2"
    assert found["saved"]["kl"] == {"2": [point["negative"], point["positive"]]}
    assert point["kl_positive"] == pytest.approx(1.0, rel=0.25)
    steering = [{"vector": "mood", "layers": [2], "strength": -0.5, "unit": "kl"}]
    body = {"prompt": "the road", "max_tokens": 2, "steering": steering}
    answer = await linear.client.post("/v1/generate", json=body)
    assert answer.status_code == 200, answer.text
    (applied,) = answer.json()["steering"]["applied"]
    assert (applied["unit"], applied["strength"]) == ("kl", -0.5)
    refused = await linear.client.post("/v1/generate", json={**body, "steering": [{**steering[0], "vector": "mood@1"}]})
    assert (refused.status_code, refused.json()["error"]["param"].split(".")[-1]) == (400, "unit")


async def test_a_map_is_calibrated_in_its_own_direction_and_not_saved(linear: Server) -> None:
    """A map that reads nothing adds the direction of `mood`, of length 1: its share of 1 nat is that strength in raw units."""
    found = await linear.client.get("/v1/vectors/mood/directions")
    direction = found.json()["2"]
    constant = {"read": [[0.0] * len(direction)], "write": [direction], "bias": [1.0]}
    body = {"name": "mapped", "directions": {"2": direction}, "scale": {"2": GAIN}, "maps": {"2": constant}}
    assert (await linear.client.post("/v1/vectors", json=body)).status_code == 201
    asked = {"kind": "calibration", "vector": "mapped", "layers": [2]}
    (added,) = (await evaluated(linear, asked))["points"]
    (point,) = (await evaluated(linear, {**asked, "operation": "apply"}))["points"]
    assert (point["negative"], point["kl_negative"]) == (None, None)
    assert point["kl_positive"] == pytest.approx(1.0, rel=0.06)
    assert point["positive"] == pytest.approx(GAIN * added["positive"], rel=0.06)
    for wrong, param in (({"save": True}, "save"), ({"vector": "mood"}, "operation")):
        refused = await linear.client.post("/v1/evaluations", json={**asked, "operation": "apply", **wrong})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param), refused.text
