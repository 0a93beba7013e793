"""Lists of allowed vectors, of the policy and of a key, and what steers without a vector's name."""

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from tests.app.conftest import Server, StartServer
from tests.app.policy.conftest import directions, generated, put_policy, tiny_engine
from tests.app.policy.test_keys import ADMIN, BEARER, ask, code, created

HEAD = [{"operation": "ablate", "hook": "attention", "head": 1, "layers": [0, 1]}]


@pytest.fixture
async def keyed(start: StartServer, hf_byte_tokenizer: PreTrainedTokenizerFast) -> Server:
    """A server over a tiny model that needs a key, with a vector."""
    engine = tiny_engine(hf_byte_tokenizer)
    server = await start(engine, api_keys=ADMIN)
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
