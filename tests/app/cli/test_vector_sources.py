"""Vectors out of files of other tools: a planted SAELens row and plain JSON arrive as they stand; the rest is refused."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from app.cli.vectors import json_directions
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


def dictionary(folder: Path, config: dict[str, Any] | None) -> Path:
    """A folder as SAELens saves one."""
    weights = folder / "sae_weights.safetensors"
    tensors = {"W_dec": ROWS, "W_enc": ROWS.T.copy(), "b_enc": np.zeros(len(ROWS), np.float32)}
    save_file(tensors | {"b_dec": np.zeros(D_MODEL, np.float32)}, weights)
    if config is not None:
        (folder / "cfg.json").write_text(json.dumps(config))
    return weights


OLD = {"hook_name": "blocks.1.hook_resid_post", "hook_layer": 1, "model_name": "tiny", "d_in": D_MODEL}


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
    for wrong in (("--feature", "2"), ("--layer", "1")):
        steer("vectors", "import", str(weights), *wrong, code=2)
    _, messages = steer("vectors", "import", str(weights), "--feature", "9", "--name", "fact", code=1)
    assert "has features 0 to 4, got 9" in messages
    (tmp_path / "cfg.json").write_text(json.dumps({**OLD, "hook_name": "blocks.1.hook_mlp_out"}))
    _, messages = steer("vectors", "import", str(weights), "--feature", "2", "--name", "fact", code=1)
    assert "not the residual stream" in messages


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
