"""A direction inside a request steers as the stored one does; it is reported by its digest, never stored, and replayed when brought again."""

import random
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import PreTrainedTokenizerFast

from steering.engine.transformers.engine import TransformersEngine
from steering.model.loading import opened
from steering.spec import InlineVector, InterventionSpec
from tests.app.conftest import Server, StartServer
from tests.families import D_MODEL, FAMILIES, LAYERS
from tests.plans import NAMES, plain, random_items

KEY = "sk-admin-key-0123456789"


def numbers(seed: int) -> dict[str, list[float]]:
    generator = torch.Generator().manual_seed(seed)
    return {str(layer): torch.randn(D_MODEL, generator=generator).tolist() for layer in range(LAYERS)}


@pytest.fixture
async def tiny(start: StartServer, hf_byte_tokenizer: PreTrainedTokenizerFast) -> Server:
    """A server over a tiny model, with a vector registered for each name."""
    engine = TransformersEngine(opened(FAMILIES["llama"](), hf_byte_tokenizer, name="tiny"))
    server = await start(engine, dose_action="off")
    for seed, name in enumerate(NAMES):
        answer = await server.client.post("/v1/vectors", json={"name": name, "directions": numbers(seed)})
        assert answer.status_code == 201
    return server


def inlined(value: Any) -> Any:
    """The same steering with numbers in place of every name, inside conditions too."""
    if isinstance(value, list):
        return [inlined(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        key: {"directions": numbers(NAMES.index(one))} if key in ("vector", "to") and one in NAMES else inlined(one)
        for key, one in value.items()
    }


async def generated(server: Server, steering: Any, **more: Any) -> dict[str, Any]:
    body = {"prompt": "Once upon a time", "max_tokens": 8, "seed": 3, "steering": steering, "logprobs": True, **more}
    answer = await server.client.post("/v1/generate", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_an_inline_direction_steers_as_the_stored_one(tiny: Server) -> None:
    for seed in range(12):
        items = plain(random_items(seed, LAYERS))
        stored, inline = await generated(tiny, items), await generated(tiny, inlined(items))
        for one, other in zip(inline["choices"], stored["choices"], strict=True):
            assert (one["text"], one["finish_reason"]) == (other["text"], other["finish_reason"]), items
            ids = [[token["id"] for token in choice["tokens"]] for choice in (one, other)]
            assert ids[0] == ids[1], items
            logprobs = [[token["logprob"] for token in choice["tokens"]] for choice in (one, other)]
            assert logprobs[0] == pytest.approx(logprobs[1], abs=1e-4)  # the second prompt comes from the prefix cache
        assert inline["steering"]["fingerprint"] == stored["steering"]["fingerprint"]
        for one in inline["steering"]["applied"]:
            assert one["vector"] == f"inline:{one['sha256'][:12]}"
    found = (await tiny.client.get("/v1/vectors")).json()["data"]
    assert sorted(vector["id"] for vector in found) == sorted(f"{name}@1" for name in NAMES)


async def test_a_replay_brings_the_direction_again(tiny: Server) -> None:
    direction = {"directions": {"1": numbers(7)["1"]}, "scale": {"1": 2.5}}
    answer = await generated(tiny, [{"vector": direction, "strength": 3.0}, {"vector": "beta", "strength": 0.3}])
    record = answer["steering"]["record"]
    assert "directions" not in record
    again = await tiny.client.post("/v1/replay", json={**record, "directions": [direction]})
    assert again.status_code == 200, again.text
    assert again.json()["choices"][0]["text"] == answer["choices"][0]["text"]
    other = {"directions": {"1": numbers(8)["1"]}, "scale": {"1": 2.5}}
    for brought in ([], [other], [{**direction, "scale": {"1": 2.4}}]):
        refused = await tiny.client.post("/v1/replay", json={**record, "directions": brought})
        assert (refused.status_code, refused.json()["error"]["param"]) == (404, "directions")
    without = await tiny.client.post("/v1/replay", json=record)
    assert without.json()["error"]["code"] == "vector_not_found"


async def test_a_sweep_of_arms_takes_one(tiny: Server) -> None:
    body = {"prompt": "Once", "max_tokens": 3, "seed": 1, "strengths": [0, 5]}
    one = {"vector": {"directions": numbers(0)}, "layers": [1]}
    found = (await tiny.client.post("/v1/compare", json={**body, "intervention": one})).json()
    stored = (await tiny.client.post("/v1/compare", json={**body, "intervention": {**one, "vector": "alpha"}})).json()
    texts = [[choice["text"] for choice in arm["choices"]] for arm in found["arms"]]
    assert texts == [[choice["text"] for choice in arm["choices"]] for arm in stored["arms"]]
    assert texts[0] != texts[1]


REFUSED: list[tuple[Any, str, str | None]] = [
    ({"directions": {"1": [1.0] * 31}}, "vector_model_mismatch", "directions"),
    ({"directions": {"9": [1.0] * 32}}, "vector_model_mismatch", "directions"),
    ({"directions": {"1": [0.0] * 32}}, "invalid_request", "directions"),
    ({"directions": {"1": [1e300] * 32}}, "invalid_request", "directions"),
    ({"directions": {"1": [1.0] * 32}, "scale": {"2": 1.0}}, "invalid_request", "scale"),
    ({"directions": {}}, "invalid_request", "steering.0.vector.directions"),
    ({"directions": {"1": [1.0] * 200_000}}, "limit_exceeded", None),
    ({"directions": {"1": [1.0] * 140_000}}, "invalid_request", "steering.0.vector.directions.1"),
    ({"directions": {str(i): [1.0] for i in range(600)}}, "invalid_request", "steering.0.vector.directions"),
    ({"directions": {"1": [1.0] * 32}, "name": "x"}, "invalid_request", "steering.0.vector.name"),
    ("inline:0123456789ab", "invalid_request", "vector"),
    (5, "invalid_request", "steering.0.vector"),
]


async def test_what_cannot_be_a_direction_is_refused(tiny: Server) -> None:
    for vector, code, param in REFUSED:
        answer = await tiny.client.post("/v1/generate", json={"prompt": "a", "steering": [{"vector": vector}]})
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, param) or code == "limit_exceeded", error
        assert code in (error["code"], "limit_exceeded"), error


async def test_it_cannot_be_stored_in_a_profile_or_the_default(tiny: Server) -> None:
    body = {"interventions": [{"vector": "alpha", "when": {"vector": {"directions": numbers(0)}, "above": 0.0}}]}
    for path in ("/v1/profiles/mine", "/v1/steering"):
        answer = await tiny.client.put(path, json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "interventions")
    assert (await tiny.client.get("/v1/profiles")).json()["data"] == []


async def test_a_key_with_vectors_of_its_own_may_not_bring_directions(start: StartServer) -> None:
    server = await start(api_keys=KEY)
    admin = {"authorization": f"Bearer {KEY}"}
    direction = {"directions": {"1": [1.0] * 8}}
    await server.client.post("/v1/vectors", json={"name": "mood", **direction}, headers=admin)

    async def status(limits: Mapping[str, Any], steering: Any) -> int:
        body = {"name": "a", "scopes": ["generate"], "limits": limits}
        key = (await server.client.post("/v1/keys", json=body, headers=admin)).json()["key"]
        headers = {"authorization": f"Bearer {key}"}
        sent = {"prompt": "a", "max_tokens": 1, "steering": steering}
        return (await server.client.post("/v1/generate", json=sent, headers=headers)).status_code

    inline, by_name = [{"vector": direction}], [{"vector": "mood"}]
    hidden = [{"vector": "mood", "when": {"vector": direction, "above": 0.0}}]
    assert await status({}, inline) == 200
    assert await status({"vectors": ["mood"]}, by_name) == 200
    read = [{"vector": "mood", "strength_from": {"vector": direction}}]
    for steering in (inline, hidden, read, [{"vector": "mood", "operation": "replace", "to": direction}]):
        assert await status({"vectors": ["mood", "inline"]}, steering) == 403
        assert await status({"own_steering": "profiles"}, steering) == 403


@given(
    st.dictionaries(
        st.integers(0, 9).map(str), st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=4), min_size=1
    )
)
def test_the_digest_depends_on_the_numbers_alone(directions: dict[str, list[float]]) -> None:
    one = InterventionSpec.model_validate({"vector": {"directions": directions}}).vector
    items = list(directions.items())
    random.Random(1).shuffle(items)
    other = InterventionSpec.model_validate({"vector": {"directions": dict(items)}}).vector
    assert isinstance(one, InlineVector)
    assert isinstance(other, InlineVector)
    assert (one, one.sha256) == (other, other.sha256)
    again = InterventionSpec.model_validate_json(InterventionSpec(vector=one).model_dump_json()).vector
    assert again == one
    layer, row = items[0]
    changed = {**directions, layer: [*row[:-1], row[-1] + 1.0]}
    assert InterventionSpec.model_validate({"vector": {"directions": changed}}).vector != one


def test_a_name_is_text() -> None:
    with pytest.raises(ValidationError, match="directions"):
        InterventionSpec.model_validate({"vector": ["a"]})
