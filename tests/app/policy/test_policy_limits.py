"""Limits of steering: those of the policy hold for all traffic, those of a key may only be narrower."""

import json
from typing import Any

import httpx2
import pytest

from app.api.limits import RequestLimits
from steering.schemas.governance import KeyLimitsFields, SteeringLimits
from tests.app.conftest import Server, StartServer, refusal
from tests.app.policy.conftest import put_policy
from tests.app.policy.governed_routes import CHOICES, SCORE_ITEMS
from tests.app.policy.test_keys import ADMIN, BEARER, ask, bearer, code, created

OWN = [{"vector": "mood", "strength": 0.1}]


@pytest.fixture
async def governed(start: StartServer) -> Server:
    """A server with a key, two vectors and a profile."""
    server = await start(api_keys=ADMIN)
    server.client.headers.update(BEARER)
    for name in ("mood", "other"):
        await server.register(name)
    await server.client.put("/v1/profiles/cheerful", json={"interventions": OWN})
    return server


def bodies(steering: Any) -> list[tuple[str, dict[str, Any]]]:
    """A request with this steering, for each route that takes one."""
    prompt, chat = {"prompt": "a", "max_tokens": 2}, {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
    return [
        ("/v1/generate", {**prompt, "steering": steering}),
        ("/v1/compare", {**prompt, "steering": steering}),
        ("/v1/compare", {**prompt, "arms": [{"name": "a", "steering": []}, {"name": "b", "steering": steering}]}),
        ("/v1/completions", {"model": "scripted", **prompt, "steering": steering}),
        ("/v1/chat/completions", {"model": "scripted", **chat, "steering": steering}),
        ("/v1/responses", {"model": "scripted", "input": "a", "max_output_tokens": 2, "steering": steering}),
        ("/v1/messages", {"model": "scripted", **chat, "steering": steering}),
        ("/api/chat", {"model": "scripted", "messages": chat["messages"], "steering": steering}),
        ("/api/chat", {"model": "scripted", "messages": chat["messages"], "options": {"steering": steering}}),
        ("/api/generate", {"model": "scripted", "prompt": "a", "steering": steering}),
        ("/v1/logit-lens", {"prompt": "a", "layers": [1], "top_k": 1, "steering": steering}),
        ("/v1/score", {**SCORE_ITEMS, "steering": steering}),
        ("/v1/evaluations?wait=true", {**CHOICES, "steering": steering}),
    ]


@pytest.mark.parametrize(
    ("limits", "steering", "expected"),
    [
        ({"own_steering": "profiles"}, OWN, (403, "insufficient_scope")),
        ({"own_steering": "none"}, {"profile": "cheerful"}, (403, "insufficient_scope")),
        ({"vectors": ["other"]}, OWN, (403, "insufficient_scope")),
        ({"vectors": ["other"]}, {"profile": "cheerful"}, (403, "insufficient_scope")),
        ({"vectors": ["mood"]}, [{**OWN[0], "strength_from": {"vector": "other"}}], (403, "insufficient_scope")),
        ({"max_relative_dose": 0.01}, [{"vector": "mood", "strength": 5.0}], (400, "dose_exceeded")),
    ],
)
async def test_limits_of_the_policy_hold_on_every_route(
    governed: Server, limits: dict[str, Any], steering: Any, expected: tuple[int, str]
) -> None:
    for path, body in bodies(steering):
        assert (await governed.client.post(path, json=body)).status_code == 200, path
    await put_policy(governed, limits=limits)
    for path, body in bodies(steering):
        assert code(await governed.client.post(path, json=body)) == expected, path
    for path, body in bodies([]):
        assert (await governed.client.post(path, json=body)).status_code == 200, path


async def test_limits_of_the_policy_hold_for_each_line_of_a_batch_of_scores(governed: Server) -> None:
    async def submitted(steering: Any) -> httpx2.Response:
        asked: list[Any] = [[], steering]
        lines = [json.dumps({**SCORE_ITEMS, "steering": one}) for one in asked]
        headers = {"content-type": "application/jsonl"}
        return await governed.client.post("/v1/score/batch", content="\n".join(lines), headers=headers)

    strong = [{"vector": "mood", "strength": 5.0}]
    limits: list[tuple[dict[str, Any], Any, tuple[int, str]]] = [
        ({"own_steering": "profiles"}, OWN, (403, "insufficient_scope")),
        ({"own_steering": "none"}, {"profile": "cheerful"}, (403, "insufficient_scope")),
        ({"vectors": ["other"]}, OWN, (403, "insufficient_scope")),
        ({"max_relative_dose": 0.01}, strong, (400, "dose_exceeded")),
    ]
    for fields, steering, expected in limits:
        await put_policy(governed, limits=fields)
        refused = await submitted(steering)
        assert code(refused) == expected, fields
        assert refused.json()["error"]["message"].startswith("line 2: ")
        assert (await submitted([])).status_code == 202


async def test_limits_hold_for_the_model_of_a_profile_a_sweep_and_a_replay(governed: Server) -> None:
    answer = (await governed.client.post("/v1/generate", json={"prompt": "a", "max_tokens": 2, "steering": OWN})).json()
    sweep = {"prompt": "a", "max_tokens": 2, "intervention": OWN[0], "strengths": [0.1, 0.2]}
    chat = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
    bodies = [
        ("/v1/replay", answer["steering"]["record"]),
        ("/v1/compare", sweep),
        ("/v1/chat/completions", {"model": "scripted@cheerful", **chat}),
        ("/v1/responses", {"model": "scripted@cheerful", "input": "a", "max_output_tokens": 2}),
        ("/v1/messages", {"model": "scripted@cheerful", **chat}),
        ("/api/generate", {"model": "scripted@cheerful", "prompt": "a"}),
    ]
    for path, body in bodies:
        assert (await governed.client.post(path, json=body)).status_code == 200, path
    await put_policy(governed, limits={"own_steering": "none"})
    for path, body in bodies:
        assert code(await governed.client.post(path, json=body)) == (403, "insufficient_scope"), path


async def test_a_key_narrows_and_never_widens(governed: Server) -> None:
    await put_policy(governed, limits={"own_steering": "profiles", "vectors": ["mood"]})
    wide = await created(governed, limits={"own_steering": "any", "vectors": ["mood", "other"]})
    assert code(await ask(governed, wide, steering=OWN)) == (403, "insufficient_scope")
    assert (await ask(governed, wide, steering={"profile": "cheerful"})).status_code == 200
    narrow = await created(governed, limits={"own_steering": "none"})
    assert code(await ask(governed, narrow, steering={"profile": "cheerful"})) == (403, "insufficient_scope")


@pytest.mark.parametrize(
    ("policy", "key", "expected"),
    [
        ({}, {}, (None, "any", None, None)),
        ({"max_relative_dose": 0.3}, {"max_relative_dose": 0.5}, (0.3, "any", None, None)),
        ({"max_relative_dose": 0.3}, {"max_relative_dose": 0.1}, (0.1, "any", None, None)),
        ({"own_steering": "none"}, {"own_steering": "any"}, (None, "none", None, None)),
        ({"own_steering": "any"}, {"own_steering": "profiles"}, (None, "profiles", None, None)),
        ({"vectors": ["a", "b"]}, {"vectors": ("b", "c")}, (None, "any", ("b", "c"), ("a", "b"))),
        ({"vectors": ["a"]}, {}, (None, "any", None, ("a",))),
        ({}, {"vectors": ("c",)}, (None, "any", ("c",), None)),
    ],
)
def test_the_narrower_limit_of_each_kind_holds(policy: dict[str, Any], key: dict[str, Any], expected: Any) -> None:
    found = RequestLimits.of(SteeringLimits.model_validate(policy), KeyLimitsFields.model_validate(key))
    assert (found.max_relative_dose, found.own_steering, found.vectors, found.shared_vectors) == expected


async def test_the_default_steering_is_bounded_too(governed: Server) -> None:
    await governed.client.put("/v1/steering", json={"interventions": [{"vector": "mood", "strength": 5.0}]})

    async def applied() -> dict[str, Any]:
        answer = await governed.client.post("/v1/generate", json={"prompt": "a", "max_tokens": 2})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()["steering"]
        return found

    free = await applied()
    await put_policy(governed, limits={"max_relative_dose": 0.01})
    bounded = await applied()
    assert governed.scripted.requests[-1].plan.dose_bound == 0.01
    assert [one["vector"] for one in bounded["applied"]] == ["mood@1"]
    assert bounded["fingerprint"] != free["fingerprint"]
    await put_policy(governed, limits={"vectors": ["other"]})
    without = await applied()
    assert without["applied"] == []
    assert "the default steering is not applied" in without["warnings"][-1]


async def test_an_answer_under_a_default_that_was_scaled_down_is_replayed_by_its_key(governed: Server) -> None:
    await governed.client.put("/v1/steering", json={"interventions": [{"vector": "mood", "strength": 5.0}]})
    key, free = await created(governed, limits={"max_relative_dose": 0.01}), await created(governed)
    body = {"prompt": "a", "max_tokens": 2}

    async def asked(path: str, body: dict[str, Any], by: dict[str, Any]) -> httpx2.Response:
        return await governed.client.post(path, json=body, headers=bearer(by["key"]))

    answer, other = [(await asked("/v1/generate", body, by)).json()["steering"] for by in (key, free)]
    replay = await asked("/v1/replay", answer["record"], key)
    assert (replay.status_code, replay.json()["steering"]["fingerprint"]) == (200, answer["fingerprint"])
    assert governed.scripted.requests[-1].plan.dose_bound == 0.01
    refused = await asked("/v1/replay", other["record"], key)
    assert (code(refused), refusal(refused)["param"]) == ((400, "invalid_request"), "fingerprint")
    assert code(await asked("/v1/generate", {**body, "steering": other["record"]["interventions"]}, key)) == (
        400,
        "dose_exceeded",
    )


async def test_the_default_steering_is_read_with_the_warnings_of_its_requests(governed: Server) -> None:
    default = {"interventions": OWN}
    assert (await governed.client.put("/v1/steering", json=default)).json()["warnings"] == []
    for limits in ({"vectors": ["other"]}, {"max_relative_dose": 0.01}):
        await put_policy(governed, limits=limits)
        asked = (await governed.client.post("/v1/generate", json={"prompt": "a", "max_tokens": 1})).json()
        read = (await governed.client.get("/v1/steering")).json()
        assert read["warnings"] == asked["steering"]["warnings"] != []
    await governed.state.store.documents.put("policy", {"mandatory": "damaged"})
    await governed.state.policy.refresh(governed.state.store, governed.engine)
    read = (await governed.client.get("/v1/steering")).json()
    assert (read["interventions"][0]["vector"], read["warnings"]) == ("mood@1", []), (
        "read, though no request is answered"
    )


async def test_a_larger_limit_than_the_bound_of_the_server_keeps_its_warning(governed: Server) -> None:
    steering = [{"vector": "mood", "strength": 0.5}]  # a planned dose of 0.47
    asked: dict[str, Any] = {"prompt": "a", "max_tokens": 1, "steering": steering}
    for limit in (0.6, 0.4):
        await put_policy(governed, limits={"max_relative_dose": limit})
        answer = await governed.client.post("/v1/generate", json=asked)
        if limit == 0.4:
            assert code(answer) == (400, "dose_exceeded")
        else:
            (warning,) = answer.json()["steering"]["warnings"]
            assert "beyond the bound of 0.2: text may break" in warning


async def test_a_key_that_may_not_list_interventions_stores_and_evaluates_none(governed: Server) -> None:
    key = await created(governed, scopes=["write", "generate"], limits={"own_steering": "profiles"}, namespace="shared")
    for method, path, body in (
        ("PUT", "/v1/profiles/mine", {"interventions": OWN}),
        ("PUT", "/v1/steering", {"interventions": OWN}),
        ("POST", "/v1/evaluations", {"kind": "layer_sweep", "vector": "mood"}),
        ("POST", "/v1/evaluations", {**CHOICES, "steering": OWN}),
        ("POST", "/v1/score", {**SCORE_ITEMS, "steering": OWN}),
    ):
        answer = await governed.client.request(method, path, json=body, headers=bearer(key["key"]))
        assert code(answer) == (403, "insufficient_scope"), path
    other = await created(governed, scopes=["write"], limits={"vectors": ["other"]}, namespace="shared")
    answer = await governed.client.post(
        "/v1/evaluations", json={"kind": "layer_sweep", "vector": "mood"}, headers=bearer(other["key"])
    )
    assert code(answer) == (403, "insufficient_scope")


async def test_own_steering_of_the_policy_holds_where_steering_is_stored(governed: Server) -> None:
    writer, body = bearer((await created(governed, scopes=["write"]))["key"]), {"interventions": OWN}
    for path in ("/v1/profiles/mine", "/v1/steering"):
        assert (await governed.client.put(path, json=body, headers=writer)).status_code == 200, path
    await put_policy(governed, limits={"own_steering": "profiles"})
    for path in ("/v1/profiles/mine", "/v1/steering"):
        assert code(await governed.client.put(path, json=body, headers=writer)) == (403, "insufficient_scope"), path
        assert (await governed.client.put(path, json=body)).status_code == 200, "an admin decides what may be named"


SWEEP = {"kind": "layer_sweep", "vector": "mood", "prompts": ["the road", "the river"], "max_tokens": 2}
DOSE = {**SWEEP, "kind": "dose_response", "neutral": ["the road"], "random_directions": 0}
REPORT = {"kind": "report", "vector": "mood", "prompts": ["the road"], "strength": 50.0}


async def test_evaluations_and_reports_are_refused_beyond_what_the_policy_allows(governed: Server) -> None:
    await put_policy(governed, limits={"max_relative_dose": 0.01})
    for body in ({**SWEEP, "strengths": [0.001, 50.0]}, {**DOSE, "strengths": [0.001, 50.0]}, REPORT):
        refused = await governed.client.post("/v1/evaluations", json=body)
        assert code(refused) == (400, "dose_exceeded"), body
    await put_policy(governed, limits={"own_steering": "none"})
    for body in (SWEEP, DOSE, REPORT):
        assert code(await governed.client.post("/v1/evaluations", json=body)) == (403, "insufficient_scope")


async def test_the_dose_of_an_evaluation_is_bounded_where_it_is_not_known_beforehand(tiny: Server) -> None:
    await put_policy(tiny, limits={"max_relative_dose": 0.05})
    answer = await tiny.client.post("/v1/evaluations?wait=true", json={**SWEEP, "strengths": [50.0]})
    assert answer.status_code == 200, answer.text
    doses = [point["relative_dose"] for point in answer.json()["points"]]
    assert doses == [pytest.approx(0.05, rel=0.01)] * 4


async def test_only_admins_see_the_policy(governed: Server) -> None:
    key = await created(governed, scopes=["generate", "read", "write"])
    for method, path in (
        ("GET", "/v1/policy"),
        ("PUT", "/v1/policy"),
        ("DELETE", "/v1/policy"),
        ("GET", "/v1/monitors"),
        ("GET", "/v1/monitors/watch"),
    ):
        answer = await governed.client.request(method, path, json={}, headers=bearer(key["key"]))
        assert code(answer) == (403, "insufficient_scope"), path


async def test_only_an_admin_forces_the_delete_of_a_vector_that_the_policy_uses(governed: Server) -> None:
    monitor = {"name": "m", "vector": "mood", "above": 1.0}
    await put_policy(governed, monitors=[monitor])
    writer = bearer((await created(governed, scopes=["write"]))["key"])
    for query in ("force=true", "force=true&version=1"):
        refused = await governed.client.delete(f"/v1/vectors/mood?{query}", headers=writer)
        assert code(refused) == (403, "insufficient_scope")
        assert "policy" in refused.json()["error"]["message"]
    assert code(await governed.client.delete("/v1/vectors/mood", headers=writer)) == (409, "vector_in_use")
    await governed.client.put("/v1/profiles/another", json={"interventions": [{"vector": "other"}]})
    assert (await governed.client.delete("/v1/vectors/other?force=true", headers=writer)).status_code == 204
    assert (await governed.client.delete("/v1/vectors/mood?force=true")).status_code == 204, "an admin may"
