"""Vectors out of files of other tools: a planted SAELens row and plain JSON arrive as they stand; the rest is refused."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from app.cli.vectors import decoder_row, json_directions
from steering.client import ApiError, Client
from steering.errors import InvalidRequest
from tests.app.cli.conftest import Steer
from tests.app.conftest import D_MODEL
from tests.app.running import running

ROWS = np.random.default_rng(0).standard_normal((5, D_MODEL)).astype(np.float32)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with running() as found:
        yield found


def dictionary(folder: Path, config: dict[str, Any] | None, rows: np.ndarray[Any, Any] = ROWS) -> Path:
    """A folder as SAELens saves one."""
    weights = folder / "sae_weights.safetensors"
    save_file({"W_dec": rows, "W_enc": rows.T.copy(), "b_dec": np.zeros(D_MODEL, np.float32)}, weights)
    if config is not None:
        (folder / "cfg.json").write_text(json.dumps(config))
    return weights


OLD = {"hook_name": "blocks.1.hook_resid_post", "hook_layer": 1, "model_name": "tiny", "d_in": D_MODEL}
NEW = {"d_in": D_MODEL, "metadata": {"hook_name": "blocks.2.hook_resid_pre", "model_name": "tiny"}}


@pytest.mark.parametrize("config", [OLD, NEW, {"hook_point": "blocks.1.hook_resid_post"}])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_decoder_row_lies_at_the_layer_of_its_hook(tmp_path: Path, config: dict[str, Any], kind: Any) -> None:
    weights = dictionary(tmp_path, config, ROWS.astype(kind))
    found = decoder_row(weights, tmp_path / "cfg.json", 3, None)
    assert found["directions"] == {"1": ROWS[3].tolist()}, "before block 2 is after block 1"
    assert "feature 3" in found["description"]


def test_a_layer_that_is_given_comes_before_the_configuration(tmp_path: Path) -> None:
    weights = dictionary(tmp_path, None)
    assert list(decoder_row(weights, tmp_path / "cfg.json", 0, 2)["directions"]) == ["2"]


@pytest.mark.parametrize(
    ("config", "feature", "reason"),
    [
        (None, 0, "cfg.json does not exist"),
        ([1], 0, "expected an object"),
        ({"hook_name": "blocks.1.hook_mlp_out"}, 0, "residual stream"),
        ({"hook_name": "blocks.0.hook_resid_pre"}, 0, "first block"),
        ({}, 0, "residual stream"),
        (OLD, 5, "expected 0 to 4"),
        (OLD, -1, "expected 0 to 4"),
    ],
)
def test_a_row_that_cannot_be_placed_is_refused(tmp_path: Path, config: Any, feature: int, reason: str) -> None:
    weights = dictionary(tmp_path, config)
    with pytest.raises(InvalidRequest, match=reason):
        decoder_row(weights, tmp_path / "cfg.json", feature, None)


def test_weights_that_are_none_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "sae_weights.safetensors"
    for tensors, reason in (
        ({"W_enc": torch.ones(2, 2)}, "no tensor W_dec"),
        ({"W_dec": torch.ones(4)}, "feature, d_model"),
        ({"W_dec": torch.ones(2, 4, dtype=torch.bfloat16)}, "BF16"),
        ({"W_dec": torch.ones(2, 4, dtype=torch.int32)}, "I32"),
    ):
        save_torch(tensors, file)
        with pytest.raises(InvalidRequest, match=reason):
            decoder_row(file, tmp_path / "cfg.json", 0, 1)
    file.write_bytes(b"PK\x03\x04 and more that is no header")
    with pytest.raises(InvalidRequest, match="not a safetensors"):
        decoder_row(file, tmp_path / "cfg.json", 0, 1)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not valid JSON"),
        ("[1, 2]", "give its layer"),
        ('{"1": [1, "2"]}', "1.1"),
        ('{"one": [1]}', "one"),
        ('{"1": [NaN]}', "not finite"),
        ('{"1": [1], "1": [2]}', "given twice"),
        ('{"directions": {"1": [1]}, "owner": "me"}', "owner"),
        ('{"directions": {"1": [1]}, "scale": {"1": -1}}', "scale.1"),
        ('"text"', "dict"),
    ],
)
def test_json_that_is_no_vector_is_refused_with_the_place(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "v.json"
    file.write_text(text)
    with pytest.raises(InvalidRequest, match=reason):
        json_directions(file, None)


def directions(address: str, name: str) -> dict[str, list[float]]:
    with Client(address) as client:
        vector = client.export_vector_json(name)
    return {layer: (np.asarray(values) * vector.scale[layer]).tolist() for layer, values in vector.directions.items()}


def test_a_decoder_row_comes_in_by_the_command(steer: Steer, address: str, tmp_path: Path) -> None:
    weights = dictionary(tmp_path, OLD)
    steer("vectors", "import", str(weights), "--feature", "2", "--name", "fact")
    assert directions(address, "fact")["1"] == pytest.approx(ROWS[2].tolist(), rel=1e-5)
    with Client(address) as client:
        assert client.get_vector("fact").tags == ["saelens"]
    for wrong in (("--feature", "2"), ("--config", str(tmp_path / "cfg.json")), ("--layer", "1")):
        steer("vectors", "import", str(weights), *wrong, code=2)
    _, messages = steer("vectors", "import", str(weights), "--feature", "9", "--name", "fact", code=1)
    assert "expected 0 to 4" in messages


def test_plain_json_comes_in_by_the_command_and_over_http(steer: Steer, address: str, tmp_path: Path) -> None:
    row = ROWS[0].tolist()
    file = tmp_path / "v.json"
    for value, options in (
        ({"1": row}, ("--name", "one")),
        (row, ("--name", "one", "--layer", "1")),
        ({"name": "one", "directions": {"1": row}}, ()),
    ):
        file.write_text(json.dumps(value))
        steer("vectors", "import", str(file), *options)
        assert directions(address, "one")["1"] == pytest.approx(row, rel=1e-5)
    with Client(address) as client:
        client.register_vector("posted", {"1": row})
        assert directions(address, "posted")["1"] == pytest.approx(row, rel=1e-5)
        with pytest.raises(ApiError, match="d_model"):
            client.register_vector("posted", {"1": row[:-1]})
    file.write_text(json.dumps({"1": row}))
    steer("vectors", "import", str(file), code=2)


def test_a_json_export_comes_back_with_its_scales_and_words(steer: Steer, address: str, tmp_path: Path) -> None:
    with Client(address) as client:
        client.register_vector("warm", {"1": ROWS[1].tolist()}, scale={"1": 7.0}, description="warm", tags=["feeling"])
        before = client.export_vector_json("warm")
        file = tmp_path / "warm.json"
        steer("vectors", "export", "warm", "-o", str(file), "--format", "json")
        steer("vectors", "import", str(file), "--name", "again")
        after = client.export_vector_json("again")
    assert after.directions["1"] == pytest.approx(before.directions["1"], abs=1e-6)
    assert (after.scale, after.description, after.tags) == ({"1": 7.0}, "warm", ["feeling"])
