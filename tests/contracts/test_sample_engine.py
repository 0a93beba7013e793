"""An engine added by one registration serves the whole HTTP API, and no transformers model is loaded for it."""

import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from app.core.settings import Settings
from app.main import create_app
from steering.engine import ENGINES
from steering.errors import InvalidRequest
from tests.contracts.sample_engine import SIZES, SampleEngine
from tests.memory_store import memory_store

PAIRS = [{"positive": f"warm day {i}", "negative": f"cold day {i}"} for i in range(6)]


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    ENGINES.register("sample", lambda: SampleEngine)
    app = create_app(Settings(engine="sample", model="no-such-model"), store_factory=memory_store)
    try:
        async with app.router.lifespan_context(app):
            await app.state.steering.loaded.wait()
            transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
            async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
                yield client
    finally:
        ENGINES.unregister("sample")


async def posted(client: httpx2.AsyncClient, path: str, body: dict[str, Any], status: int = 200) -> Any:
    answer = await client.post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


async def test_capabilities_name_the_engine_and_leave_out_what_it_cannot_do(client: httpx2.AsyncClient) -> None:
    shown = (await client.get("/v1/capabilities")).json()
    assert (shown["engine"], shown["d_model"], shown["layers"]) == ("sample", SIZES["d_model"], SIZES["layer_count"])
    assert shown["model"]["name"] == "no-such-model"
    assert "mean_difference" in shown["methods"]
    assert "trained" not in shown["methods"]
    assert (await client.get("/health/ready")).status_code == 200


async def test_vectors_are_extracted_and_steer_generation_comparison_and_readout(client: httpx2.AsyncClient) -> None:
    vector = await posted(client, "/v1/vectors/extract?wait=true", {"name": "warmth", "pairs": PAIRS}, 201)
    assert vector["layers"] == [0, 1]
    steering = [{"vector": "warmth", "strength": 1.0}]
    made = await posted(client, "/v1/generate", {"prompt": "abc", "max_tokens": 5, "steering": steering})
    assert made["choices"][0]["text"] == "abcab"
    assert made["steering"]["applied"][0]["vector"] == "warmth@1"
    arms = [{"name": "plain"}, {"name": "warm", "steering": steering}]
    compared = await posted(client, "/v1/compare", {"prompt": "abc", "max_tokens": 4, "arms": arms})
    assert [arm["choices"][0]["text"] for arm in compared["arms"]] == ["abca", "abca"]
    read = await posted(client, "/v1/readout", {"texts": ["warm", "cold"], "vectors": ["warmth"]})
    assert len(read["texts"]) == 2
    streamed = await client.post("/v1/generate", json={"prompt": "abc", "max_tokens": 3, "stream": True})
    assert streamed.text.count("event: token") == 3
    assert "event: done" in streamed.text


async def test_what_the_engine_cannot_do_is_refused_by_name(client: httpx2.AsyncClient) -> None:
    trained = {"name": "warmth", "pairs": PAIRS, "method": "trained"}
    refused = await posted(client, "/v1/vectors/extract?wait=true", trained, 400)
    assert refused["error"]["code"] == "unsupported_parameter"
    assert refused["error"]["param"] == "method"
    assert "'sample'" in refused["error"]["message"]
    refused = await posted(client, "/v1/logit-lens", {"prompt": "abc"}, 400)
    assert refused["error"]["code"] == "unsupported_parameter"
    assert "'sample'" in refused["error"]["message"]
    too_long = await posted(client, "/v1/generate", {"prompt": "a" * 600, "max_tokens": 5}, 400)
    assert too_long["error"]["code"] == "context_length_exceeded"


def test_no_transformers_model_is_imported_for_another_engine() -> None:
    program = """
import sys
from pathlib import Path
from app.main import create_app
from steering.engine import ENGINES, open_engine
from steering.engine.options import EngineOptions
from tests.contracts.sample_engine import SampleEngine

ENGINES.register("sample", lambda: SampleEngine)
open_engine("sample", EngineOptions("any", Path(".")))
create_app()
print(sorted(name for name in sys.modules if name.split(".")[0] == "transformers" or ".transformers" in name))
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_an_unknown_engine_is_named_with_its_nearest_neighbour() -> None:
    with pytest.raises(
        InvalidRequest, match="engine: unknown engine 'transformer'; did you mean 'transformers'"
    ) as raised:
        _ = ENGINES["transformer"]
    assert raised.value.param == "engine"
