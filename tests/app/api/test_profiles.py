"""Profiles and the default steering: strengths that live on the server."""

from typing import Any

import pytest

from tests.app.conftest import D_MODEL, Server, StartServer

CHEERFUL = {"interventions": [{"vector": "sentiment", "strength": 0.5}], "description": "a bit brighter"}


async def test_a_profile_is_kept_listed_replaced_and_forgotten(server: Server) -> None:
    await server.register()
    put = await server.client.put("/v1/profiles/cheerful", json=CHEERFUL)
    assert put.status_code == 200, put.text
    profile = put.json()
    assert (profile["name"], profile["description"]) == ("cheerful", "a bit brighter")
    assert profile["interventions"][0]["strength"] == 0.5
    assert (await server.client.get("/v1/profiles/cheerful")).json() == profile
    assert (await server.client.get("/v1/profiles")).json()["data"] == [profile]
    again = {"interventions": [{"vector": "sentiment", "strength": 0.75}]}
    assert (await server.client.put("/v1/profiles/cheerful", json=again)).json()["created_at"] == profile["created_at"]
    assert (await server.client.delete("/v1/profiles/cheerful")).status_code == 204
    gone = await server.client.get("/v1/profiles/cheerful")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "profile_not_found")
    assert (await server.client.delete("/v1/profiles/cheerful")).status_code == 404


async def test_what_a_profile_gives_back_can_be_put_again(server: Server) -> None:
    await server.register()
    when = {"not": {"vector": "sentiment", "above": 0.2, "at": "prompt"}}
    body = {"interventions": [{"vector": "sentiment", "layers": {"from": 1, "to": 3}, "when": when}]}
    first = (await server.client.put("/v1/profiles/p", json=body)).json()
    second = await server.client.put("/v1/profiles/p", json={"interventions": first["interventions"]})
    assert second.status_code == 200, second.text
    assert second.json()["interventions"] == first["interventions"]


async def test_a_profile_must_be_possible(server: Server) -> None:
    missing = await server.client.put("/v1/profiles/p", json=CHEERFUL)
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "vector_not_found")
    await server.register()
    for interventions in (
        [{"vector": "sentiment", "layers": [0]}],
        [{"vector": "sentiment", "operation": "explode"}],
        [{"vector": "sentiment", "unit": "pounds"}],
        [],
    ):
        answer = await server.client.put("/v1/profiles/p", json={"interventions": interventions})
        assert answer.status_code == 400, interventions
    assert (await server.client.put("/v1/profiles/No Good", json=CHEERFUL)).status_code == 400
    assert (await server.client.get("/v1/profiles")).json()["data"] == []


async def test_an_unknown_profile_is_never_taken_for_no_steering(server: Server) -> None:
    answer = await server.client.post("/v1/generate", json={"prompt": "a", "steering": {"profile": "nobody"}})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "profile_not_found")
    answer = await server.client.post("/v1/generate", json={"prompt": "a", "steering": [{"vector": "nobody"}]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "vector_not_found")


@pytest.mark.parametrize("steering", [{}, {"interventions": []}, {"vector": "sentiment"}, "sentiment", 3])
async def test_what_is_no_form_of_steering_is_rejected_with_both_forms(server: Server, steering: Any) -> None:
    answer = await server.client.post("/v1/generate", json={"prompt": "a", "steering": steering})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "steering")
    assert "a list of interventions, or an object" in error["message"]
    assert '"profile"' in error["message"]


async def test_a_vector_of_the_default_steering_cannot_go(server: Server) -> None:
    await server.register()
    await server.client.put("/v1/steering", json={"interventions": [{"vector": "sentiment"}]})
    assert (await server.client.get("/v1/steering")).json()["interventions"][0]["vector"] == "sentiment@1"
    assert (await server.client.delete("/v1/vectors/sentiment")).status_code == 409
    assert (await server.client.delete("/v1/steering")).status_code == 204
    assert (await server.client.delete("/v1/vectors/sentiment")).status_code == 204


async def test_errors_of_stored_steering_name_the_field_that_was_sent(start: StartServer) -> None:
    server = await start(max_interventions=1, dose_action="refuse")
    await server.register("mood")
    many, strong = [{"vector": "mood", "strength": 0.01}] * 2, [{"vector": "mood", "strength": 9.0}]
    inline = [{"vector": {"directions": {"1": [1.0] * D_MODEL}}}]
    bodies = [
        *(("/v1/profiles/p", {"interventions": one}, "interventions") for one in (many, strong, inline)),
        *(("/v1/steering", {"interventions": one}, "interventions") for one in (many, strong, inline)),
        *(("/v1/policy", {"mandatory": one}, "mandatory") for one in (many, inline)),
    ]
    for path, body, param in bodies:
        answer = await server.client.put(path, json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
