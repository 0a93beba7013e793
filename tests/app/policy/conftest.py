"""A server over a tiny model with random weights, whose scores differ from token to token."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from steering.engine.transformers.engine import TransformersEngine
from steering.model.loading import opened
from tests.app.conftest import Server, StartServer
from tests.families import FAMILIES

LAYERS = (0, 1, 2)


def tiny_engine(tokenizer: PreTrainedTokenizerFast) -> TransformersEngine:
    """An engine over a tiny llama."""
    return TransformersEngine(opened(FAMILIES["llama"](), tokenizer, name="tiny"))


def directions(d_model: int, seed: int) -> dict[str, list[float]]:
    """Random directions at every layer."""
    numbers = torch.Generator().manual_seed(seed)
    return {str(layer): torch.randn(d_model, generator=numbers).tolist() for layer in LAYERS}


@pytest.fixture
async def tiny(start: StartServer, hf_byte_tokenizer: PreTrainedTokenizerFast) -> Server:
    """A server with two vectors."""
    engine = tiny_engine(hf_byte_tokenizer)
    server = await start(engine)
    for seed, name in enumerate(("mood", "other")):
        body = {"name": name, "directions": directions(engine.info.d_model, seed), "scale": dict.fromkeys("012", 2.0)}
        assert (await server.client.post("/v1/vectors", json=body)).status_code == 201
    return server


async def put_policy(server: Server, **policy: Any) -> dict[str, Any]:
    """Sets the policy."""
    answer = await server.client.put("/v1/policy", json=policy)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def generated(server: Server, **fields: Any) -> dict[str, Any]:
    """Generates a seeded answer."""
    ask = {"prompt": "the road", "max_tokens": 24, "temperature": 1.0, "seed": 5, **fields}
    answer = await server.client.post("/v1/generate", json=ask)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def scores(server: Server, **fields: Any) -> list[float]:
    """The readout of `mood` at each token of the first choice."""
    (choice, *_) = (await generated(server, readout=["mood"], **fields))["choices"]
    return [token["readout"]["mood"] for token in choice["tokens"]]
