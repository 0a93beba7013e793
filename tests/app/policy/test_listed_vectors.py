"""Lists of allowed vectors, of the policy and of a key, and what steers without a vector's name."""

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from tests.app.conftest import Server, StartServer
from tests.app.policy.conftest import directions, generated, put_policy, tiny_engine
from tests.app.policy.test_keys import ADMIN, BEARER, ask, bearer, code, created
from tests.app.transfer.test_transfer_route import BODY, EFFECT

HEAD = [{"operation": "ablate", "hook": "attention", "head": 1, "layers": [0, 1]}]

TRANSFER = {**BODY, "effect": EFFECT}
DISTIL = {"name": "mood", "instruction": "Rhyme.", "prompts": [f"say {one}" for one in range(8)], "max_tokens": 4}


@pytest.fixture
async def keyed(start: StartServer, hf_byte_tokenizer: PreTrainedTokenizerFast) -> Server:
    """A server over a tiny model that needs a key, with a vector."""
    engine = tiny_engine(hf_byte_tokenizer)
    server = await start(engine, api_keys=ADMIN, scorer_model="no-such-folder")
    server.client.headers.update(BEARER)
    body = {"name": "mood", "directions": directions(engine.info.d_model, 0)}
    assert (await server.client.post("/v1/vectors", json=body)).status_code == 201
    return server


async def test_a_list_of_vectors_allows_no_head(keyed: Server) -> None:
    free, listed = await created(keyed), await created(keyed, limits={"vectors": ["mood"]})
    profile = await keyed.client.put("/v1/profiles/headless", json={"interventions": HEAD})
    assert profile.status_code == 200, profile.text
    steerings: list[Any] = [HEAD, {"profile": "headless"}]
    for steering in steerings:
        assert (await ask(keyed, free, steering=steering)).status_code == 200
        assert code(await ask(keyed, listed, steering=steering)) == (403, "insufficient_scope")
    assert (await ask(keyed, listed, steering=[{"vector": "mood"}])).status_code == 200
    await put_policy(keyed, limits={"vectors": ["mood"]})
    for steering in steerings:
        assert code(await ask(keyed, free, steering=steering)) == (403, "insufficient_scope")


async def test_a_default_with_a_head_is_left_out_where_the_policy_lists_vectors(tiny: Server) -> None:
    assert (await tiny.client.put("/v1/steering", json={"interventions": HEAD})).status_code == 200
    assert [one["head"] for one in (await generated(tiny))["steering"]["applied"]] == [1]
    await put_policy(tiny, limits={"vectors": ["mood"]})
    without = (await generated(tiny))["steering"]
    assert without["applied"] == []
    assert "the default steering is not applied" in without["warnings"][-1]


@pytest.mark.parametrize(("path", "body"), [("transfer", TRANSFER), ("distil", DISTIL)])
async def test_a_vector_that_is_yet_to_be_made_steers_where_its_name_is_listed(
    keyed: Server, path: str, body: dict[str, Any]
) -> None:
    async def begun(**fields: Any) -> int:
        key = await created(keyed, scopes=["write"], **fields)
        answer = await keyed.client.post(f"/v1/vectors/{path}", json=body, headers=bearer(key["key"]))
        return answer.status_code

    assert await begun(limits={"vectors": ["mood@1"]}) == 403, "the next version is another one"
    assert await begun(limits={"vectors": ["other"]}) == 403
    assert await begun(limits={"own_steering": "profiles"}) == 403
    assert await begun(limits={"vectors": ["mood@1", "mood"]}) == 202
    await put_policy(keyed, limits={"vectors": ["mood"]})
    assert await begun(namespace="team-a") == 403, "its vector is none of the namespace shared"
    await put_policy(keyed, limits={"vectors": ["mood@1"]})
    assert await begun() == 403
