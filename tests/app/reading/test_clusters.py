"""Planted groups of texts are found, by both methods, and the vector between them is the planted one."""

from typing import Any

import numpy as np
import pytest
import torch

from steering.errors import InvalidRequest
from steering.workflows.worker_process import cluster
from tests.app.conftest import Server, StartServer
from tests.fakes import ScriptedEngine
from tests.polling import until
from tests.scripted_model import planted_direction

TEXTS = [*(f"good day {i}" for i in range(9)), *(f"bad day {i}" for i in range(6))]


async def library(server: Server) -> None:
    planted = planted_direction()
    other = torch.linalg.svd(planted[None])[2][1]
    for name, direction in (("mood", planted), ("other", other)):
        body = {"name": name, "directions": {"2": direction.tolist()}}
        assert (await server.client.post("/v1/vectors", json=body)).status_code == 201


async def clustered(server: Server, **body: Any) -> dict[str, Any]:
    answer = await server.client.post("/v1/clusters", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_planted_groups_are_found_with_the_vector_between_them(server: Server) -> None:
    await library(server)
    ways: list[dict[str, Any]] = [{}, {"clusters": 2}, {"method": "hdbscan"}, {"method": "hdbscan", "min_size": 4}]
    for options in ways:
        found = await clustered(server, texts=TEXTS, layer=2, **options)
        assert found["labels"] == [0] * 9 + [1] * 6, "the larger group is the first"
        assert [one["size"] for one in found["clusters"]] == [9, 6], options
        for one, word in zip(found["clusters"], ("good", "bad"), strict=True):
            assert len(one["examples"]) == 5
            assert all(
                TEXTS[example["index"]] == example["text"] and word in example["text"] for example in one["examples"]
            )
        (pair,) = found["pairs"]
        assert (pair["clusters"], pair["nearest"]["vector"]) == ([0, 1], "mood@1")
        assert pair["nearest"]["cosine"] < -0.95, "from good to bad is against the vector"
        assert pair["distance"] == pytest.approx(2.0, abs=0.3)
        assert found["silhouette"] > 0.7


async def test_the_same_seed_gives_the_same_clusters(server: Server) -> None:
    body = {"texts": [f"text {i}" for i in range(20)], "clusters": 4, "seed": 5, "examples": 2}
    one, other = await clustered(server, **body), await clustered(server, **body)
    assert one == other
    assert (one["layer"], len(one["clusters"]), len(one["pairs"])) == (2, 4, 6)
    assert {pair["nearest"] for pair in one["pairs"]} == {None}, "the library is empty"


async def test_fewer_clusters_than_asked_for_are_said(server: Server) -> None:
    found = await clustered(server, texts=["good day", "bad day", "good night"] * 4, clusters=5)
    assert len(found["clusters"]) == 3
    assert found["warnings"] == ["3 clusters were found, not 5: the model does not tell more texts apart there"]


def test_examples_that_belong_nowhere_have_no_cluster() -> None:
    rng = np.random.default_rng(0)
    tight = [rng.normal(size=(20, 6)) * 0.05 + centre for centre in (np.zeros(6), np.full(6, 5.0))]
    rows = np.concatenate([*tight, np.full((1, 6), 60.0)]).astype(np.float32)
    labels, middles, _ = cluster(rows, "hdbscan", None, 5, 0)
    assert labels[-1] == -1
    assert sorted(set(labels.tolist())) == [-1, 0, 1]
    np.testing.assert_allclose(middles[labels[0]], rows[:20].mean(0), atol=1e-6)


def test_the_number_of_clusters_is_found_by_silhouette() -> None:
    rng = np.random.default_rng(1)
    centres = np.eye(5, 12) * 8
    rows = (np.repeat(centres, 15, axis=0) + rng.normal(size=(75, 12)) * 0.2).astype(np.float32)
    labels, middles, _ = cluster(rows, "kmeans", None, None, 0)
    assert len(middles) == 5
    assert all(len(set(labels[start : start + 15].tolist())) == 1 for start in range(0, 75, 15))


@pytest.mark.parametrize("rows", [np.ones((3, 4)), np.ones((8, 4))])
def test_too_few_or_equal_texts_are_refused(rows: np.ndarray) -> None:
    with pytest.raises(InvalidRequest, match=r"too few|alike"):
        cluster(rows.astype(np.float32), "kmeans", 2, None, 0)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"texts": TEXTS, "clusters": 1}, "clusters"),
        ({"texts": TEXTS, "method": "dbscan"}, "method"),
        ({"texts": TEXTS, "min_size": 3}, None),
        ({"texts": TEXTS, "method": "hdbscan", "clusters": 3}, None),
        ({"texts": TEXTS, "layer": 9}, "layer"),
        ({"texts": TEXTS, "position": "all"}, "position"),
        ({"texts": TEXTS[:3]}, "texts"),
        ({"texts": TEXTS, "clusters": 20}, "texts"),
    ],
)
async def test_what_cannot_be_clustered_is_refused(server: Server, body: dict[str, Any], param: str | None) -> None:
    answer = await server.client.post("/v1/clusters", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_request", param)


async def test_a_request_that_takes_too_long_is_ended_and_frees_its_place(start: StartServer) -> None:
    server = await start(ScriptedEngine(token_seconds=0.2), request_seconds=0.3)
    answer = await server.client.post("/v1/clusters", json={"texts": TEXTS})
    assert answer.json()["error"]["code"] == "request_timed_out"
    await until(lambda: server.engine.stats().running == 0)
    assert (server.state.rows.reserved, server.state.memory.reserved) == (0, 0)
