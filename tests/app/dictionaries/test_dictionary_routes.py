"""/v1/dictionaries and `steer dictionaries` over a folder that the test writes."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from steering.engine.transformers.engine import TransformersEngine
from steering.lab.dictionaries import compared_texts
from steering.model.loading import opened
from tests.app.cli.conftest import Steer
from tests.app.conftest import Server, StartServer
from tests.app.running import running
from tests.families import D_MODEL, FAMILIES
from tests.steering.lab.planted_folder import planted_folder

DIRECTION = torch.arange(1.0, D_MODEL + 1.0)


async def test_a_feature_is_found_stored_and_steers(
    start: StartServer, hf_byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    good = planted_folder(tmp_path / "sae-1", D_MODEL, {5: DIRECTION})
    bad = planted_folder(tmp_path / "narrow", 8, {})
    engine = TransformersEngine(opened(FAMILIES["llama"](), hf_byte_tokenizer, name="tiny"))
    server = await start(engine, dictionaries=(str(good), str(bad), str(tmp_path / "nothing")), dose_action="off")
    client = server.client
    listed = (await client.get("/v1/dictionaries")).json()["data"]
    assert [(one["name"], one["problem"] is None) for one in listed] == [
        ("sae-1", True), ("narrow", False), ("nothing", False),
    ]  # fmt: skip
    assert str(tmp_path) not in str(listed)
    vector = {"name": "mood", "directions": {"1": DIRECTION.tolist()}}
    assert (await client.post("/v1/vectors", json=vector)).status_code == 201
    found = await client.post("/v1/dictionaries/sae-1/search", json={"vector": "mood", "top": 2})
    assert found.json()["features"][0]["feature"] == 5
    foreign = await server.state.store.shared.vectors.get("mood")
    object.__setattr__(foreign, "model_fingerprint", "another")
    await server.state.store.shared.vectors.put(foreign)
    refused = await client.post("/v1/dictionaries/sae-1/search", json={"vector": "mood"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "vector_model_mismatch")
    texts = await client.post(
        "/v1/dictionaries/sae-1/search", json={"texts": ["a"], "against": ["b"], "min_output_score": 0}
    )
    assert texts.status_code == 200, texts.text
    stored = await client.post("/v1/dictionaries/sae-1/vectors", json={"name": "feature-5", "feature": 5})
    assert stored.status_code == 201, stored.text
    assert (stored.json()["method"], stored.json()["layers"], stored.json()["tags"]) == ("dictionary", [1], ["saelens"])
    assert stored.json()["provenance"]["feature"] == 5
    steered = {"prompt": "Hm", "max_tokens": 2, "steering": [{"vector": "feature-5", "strength": 2.0}]}
    assert (await client.post("/v1/generate", json=steered)).json()["steering"]["applied"][0]["fired"]


async def test_a_server_without_dictionaries_says_so(server: Server) -> None:
    refused = await server.client.post("/v1/dictionaries/sae-1/search", json={"vector": "mood"})
    assert refused.status_code == 404
    assert refused.json()["error"]["message"] == "name: unknown dictionary 'sae-1'; known: none"


async def test_neutral_texts_count_as_those_given_do(
    start: StartServer, hf_byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder = planted_folder(tmp_path / "sae-1", D_MODEL, {5: DIRECTION})
    engine = TransformersEngine(opened(FAMILIES["llama"](), hf_byte_tokenizer, name="tiny"))
    neutral = sum(len(engine.tokenizer.encode(text)) for text in compared_texts(()))
    own = len(engine.tokenizer.encode("abc"))
    server = await start(engine, dictionaries=(str(folder),), max_activations=(neutral + own) * D_MODEL)
    url = "/v1/dictionaries/sae-1/search"
    assert (await server.client.post(url, json={"texts": ["abc"]})).status_code == 200
    charged = f'steering_key_tokens_total{{key="anonymous"}} {float(neutral + own)}'
    assert charged in (await server.client.get("/metrics")).text
    refused = await server.client.post(url, json={"texts": ["abcd"]})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "limit_exceeded")
    assert (await server.client.post(url, json={"texts": ["abcd"], "against": ["b"]})).status_code == 200


async def test_a_folder_that_goes_away_is_named(
    start: StartServer, hf_byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder = planted_folder(tmp_path / "sae-1", D_MODEL, {5: DIRECTION})
    engine = TransformersEngine(opened(FAMILIES["llama"](), hf_byte_tokenizer, name="tiny"))
    server = await start(engine, dictionaries=(str(folder), str(tmp_path / ("x" * 300))))
    assert [one["layer"] for one in (await server.client.get("/v1/dictionaries")).json()["data"]] == [1, None]
    (folder / "sae_weights.safetensors").unlink()
    answer = await server.client.post("/v1/dictionaries/sae-1/vectors", json={"name": "mood", "feature": 5})
    assert answer.status_code == 400
    assert "dictionary 'sae-1': there is no sae_weights.safetensors" in answer.json()["error"]["message"]
    assert str(tmp_path) not in answer.text


async def test_what_does_not_exist_is_named(server: Server) -> None:
    assert (await server.client.get("/v1/dictionaries")).json() == {"data": []}
    answer = await server.client.post("/v1/dictionaries/none/search", json={"texts": ["a"]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    for body in ({}, {"texts": ["a"], "vector": "b"}, {"vector": "b", "against": ["a"]}, {"texts": ["a"], "top": 65}):
        assert (await server.client.post("/v1/dictionaries/none/search", json=body)).status_code == 400


def test_the_commands(
    hf_byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = planted_folder(tmp_path / "sae-1", D_MODEL, {5: DIRECTION})
    engine = TransformersEngine(opened(FAMILIES["llama"](), hf_byte_tokenizer, name="tiny"))
    with running(engine, dictionaries=(str(folder),)) as address:
        steer = Steer(address, capsys)
        assert "usable" in steer("dictionaries", "list")[0]
        assert "promotes" in steer("dictionaries", "search", "sae-1", "a text", "--top", "2")[0]
        assert "stored calm@1 at layer 1" in steer("dictionaries", "vector", "sae-1", "5", "calm")[0]
        assert "output score" in steer("dictionaries", "search", "sae-1", "--vector", "calm", "--top", "1")[0]
