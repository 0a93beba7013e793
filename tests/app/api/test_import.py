"""POST /v1/vectors/import: every vector that the server makes can be exported and imported again; files whose numbers contradict each
other cannot."""

from dataclasses import replace
from typing import Any

import httpx2
import pytest

from steering.store.blob import encode
from steering.vectors import ConceptVector
from steering.workflows.extract import METHOD_NAMES, TRAINED
from tests.app.conftest import D_MODEL, Server
from tests.scripted_model import SCRIPTED_MODEL
from tests.steering.store.planted import planted

PAIRS = [{"positive": f"good day {i}", "negative": f"bad day {i}"} for i in range(12)]
ONES = [1.0] * D_MODEL
CALM = {"name": "calm", "directions": {"1": ONES, "2": ONES}, "scale": {"1": 7.3}}
MAP = {"name": "map", "maps": {"1": {"read": [ONES], "write": [ONES], "activation": "relu"}}}
SUM = {"name": "sum", "terms": [{"vector": "mood", "weight": -2.5}, {"vector": "calm"}], "orthogonal_to": ["calm"]}
PROMPTS = [f"say {number}" for number in range(10)]
DISTIL = {"name": "pirate", "instruction": "Answer as a pirate.", "prompts": PROMPTS, "max_tokens": 8}


async def made(server: Server, route: str, body: dict[str, Any]) -> None:
    """Makes a vector."""
    answer = await server.client.post(route, json=body)
    assert answer.status_code == 201, answer.text


async def import_(server: Server, content: bytes) -> httpx2.Response:
    octets = {"content-type": "application/octet-stream"}
    return await server.client.post("/v1/vectors/import?name=copy", content=content, headers=octets)


async def imports_again(server: Server, name: str) -> None:
    """Asserts that the export of a vector is imported, with the same digest."""
    exported = await server.client.get(f"/v1/vectors/{name}/export")
    again = await import_(server, exported.content)
    assert again.status_code == 201, again.text
    assert again.json()["sha256"] == (await server.client.get(f"/v1/vectors/{name}")).json()["sha256"]


@pytest.mark.parametrize("method", METHOD_NAMES)
async def test_an_extracted_vector_and_a_sum(server: Server, method: str) -> None:
    training = {"training": {"steps": 2}} if method == TRAINED else {}
    body = {"name": "mood", "pairs": PAIRS, "method": method, "layers": [1, 2], **training}
    await made(server, "/v1/vectors/extract?wait=true", body)
    assert (await server.client.get("/v1/vectors/mood")).json()["centred"]
    await imports_again(server, "mood")
    if method == "mean_difference":
        await made(server, "/v1/vectors", CALM)
        await made(server, "/v1/vectors/combine", SUM)
        await imports_again(server, "sum")


@pytest.mark.parametrize(("route", "body"), [("", CALM), ("", MAP), ("/distil?wait=true", DISTIL)])
async def test_given_numbers_maps_and_a_distilled_vector(server: Server, route: str, body: dict[str, Any]) -> None:
    await made(server, f"/v1/vectors{route}", body)
    await imports_again(server, body["name"])


def with_numbers(**numbers: Any) -> ConceptVector:
    """A vector of scale 4 with these numbers at layer 1."""
    vector = replace(planted("warmth", 3, layers=2), model_fingerprint=SCRIPTED_MODEL.fingerprint)
    return replace(vector, layers={1: replace(vector.layers[1], scale=4.0, **numbers)})


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"positive_mean": 6.0, "negative_mean": 3.0}, "scale of 4 apart, or absent; got 6.0 and 3.0"),
        ({"positive_mean": 2.0, "negative_mean": 6.0}, "scale of 4 apart, or absent; got 2.0 and 6.0"),
        ({"positive_mean": 1e30, "negative_mean": -1e30}, "scale of 4 apart, or absent; got 1e+30 and -1e+30"),
        ({"positive_mean": 6.0}, "scale of 4 apart, or absent; got 6.0 and None"),
        ({"positive_mean": 1e300, "negative_mean": 1e300}, "positive_mean must lie between -3.4e+38 and 3.4e+38, got 1e+300"),
        ({"weight": 1e39}, "weight must lie"),
        ({"bias": -1e39}, "bias must lie"),
    ],
)  # fmt: skip
async def test_numbers_that_contradict_each_other_or_are_beyond_float32(
    server: Server, numbers: dict[str, float], message: str
) -> None:
    answer = await import_(server, encode(with_numbers(**numbers)))
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == "metadata"
    assert message in answer.json()["error"]["message"]


async def test_class_means_may_be_rounded_to_float32(server: Server) -> None:
    means = {"positive_mean": 1e5 + 4.0, "negative_mean": 1e5 + 0.01}
    assert (await import_(server, encode(with_numbers(**means)))).status_code == 201


async def test_a_vector_that_is_stored_already_is_still_served(server: Server) -> None:
    await server.state.store.shared.vectors.put(with_numbers(positive_mean=6.0, negative_mean=3.0))
    assert (await server.client.get("/v1/vectors/warmth")).json()["means"] == {"1": [6.0, 3.0]}
    assert (await server.client.get("/v1/vectors/warmth/directions")).status_code == 200
