"""/v1/vectors: what is kept is what was given, versions never change, and what cannot be right is refused."""

import asyncio
import math
import warnings
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader

from steering.store.blob import decode
from tests.app.conftest import D_MODEL, Server

ONES = [1.0] * D_MODEL


async def test_register_keeps_unit_directions_and_the_length_as_scale(server: Server) -> None:
    vector = await server.register(description="warm", tags=["feeling"])
    assert vector["id"] == "sentiment@1"
    assert vector["layers"] == [1, 2]
    assert vector["scale"]["1"] == pytest.approx(math.sqrt(D_MODEL))
    assert (vector["description"], vector["tags"], vector["method"]) == ("warm", ["feeling"], "given")
    assert len(vector["sha256"]) == 64
    scale = vector["scale"]["2"]  # the model's typical norm there is 3
    low, high = vector["recommended"].pop("strengths_to_try")
    assert (low * scale / 3, high * scale / 3) == pytest.approx((0.05, 0.12), rel=0.05)
    assert vector["recommended"] == {
        "layers": [2],
        "strength": None,
        "negative": None,
        "margin": None,
        "basis": "norms",
    }
    assert vector["centred"] is False
    numbers = (await server.client.get("/v1/vectors/sentiment/directions", params={"layers": "2"})).json()
    assert list(numbers) == ["2"]
    assert numbers["2"] == pytest.approx([1 / math.sqrt(D_MODEL)] * D_MODEL)


async def test_a_given_scale_is_kept(server: Server) -> None:
    assert (await server.register(scale={"1": 66.5}))["scale"]["1"] == 66.5


async def test_a_name_makes_versions_that_stay(server: Server) -> None:
    first = await server.register()
    second = await server.register(layers=(0,))
    assert (second["version"], second["layers"]) == (2, [0])
    for address in ("/v1/vectors/sentiment@1", "/v1/vectors/sentiment?version=1"):
        assert (await server.client.get(address)).json() == first
    assert (await server.client.get("/v1/vectors/sentiment")).json() == second
    twice = await server.client.get("/v1/vectors/sentiment@1?version=1")
    assert twice.status_code == 400
    assert (await server.client.get("/v1/vectors/sentiment@9")).json()["error"]["code"] == "vector_not_found"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"name": "a", "directions": {"1": ONES[:-1]}}, "vector_model_mismatch"),
        ({"name": "a", "directions": {"1": [*ONES, 1.0]}}, "vector_model_mismatch"),
        ({"name": "a", "directions": {"9": ONES}}, "vector_model_mismatch"),
        ({"name": "a", "directions": {"-1": ONES}}, "invalid_request"),
        ({"name": "a", "directions": {"01": ONES}}, "invalid_request"),
        ({"name": "a", "directions": {}}, "invalid_request"),
        ({"name": "a", "directions": {"1": [0.0] * D_MODEL}}, "invalid_request"),
        ({"name": "a", "directions": {"1": [1e308] * D_MODEL}}, "invalid_request"),
        ({"name": "a", "directions": {"1": [ONES]}}, "invalid_request"),
        ({"name": "a", "directions": {"1": 1.0}}, "invalid_request"),
        ({"name": "a", "directions": {"1": ONES}, "scale": {"1": 0}}, "invalid_request"),
        ({"name": "a", "directions": {"1": ONES}, "scale": {"1": -2}}, "invalid_request"),
        ({"name": "a", "directions": {"1": ONES}, "scale": {"2": 1.0}}, "invalid_request"),
        ({"name": "a", "directions": {"1": ONES}, "tags": ["no good"]}, "invalid_request"),
        ({"name": "a", "directions": {"1": ONES}, "owner": "me"}, "invalid_request"),
        ({"name": "a", "directions": {"1": ONES}, "id": "a@7", "created_at": "now"}, "invalid_request"),
    ],
)
async def test_what_cannot_be_a_vector_is_refused(server: Server, body: dict[str, object], code: str) -> None:
    answer = await server.client.post("/v1/vectors", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    assert (await server.client.get("/v1/vectors")).json()["data"] == []


BAD_NAMES = [
    "", ".", "..", "../x", "a/b", "A", "con\n", "a\r\nb", "a\x00", "ä", "a b", "a" * 65, "%2e%2e", "-a", "ｓ", "a@1",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
async def test_names_are_plain(server: Server, name: str) -> None:
    answer = await server.client.post("/v1/vectors", json={"name": name, "directions": {"1": ONES}})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "name")


async def test_list_pages_filters_and_searches_literally(server: Server) -> None:
    for name in ("alpha", "beta", "gamma"):
        await server.register(name, tags=["greek"] if name != "beta" else [])
    first = (await server.client.get("/v1/vectors", params={"limit": 2})).json()
    assert [one["name"] for one in first["data"]] == ["alpha", "beta"]
    rest = (await server.client.get("/v1/vectors", params={"limit": 2, "cursor": first["next_cursor"]})).json()
    assert ([one["name"] for one in rest["data"]], rest["next_cursor"]) == (["gamma"], None)
    tagged = (await server.client.get("/v1/vectors", params={"tag": "greek"})).json()["data"]
    assert [one["name"] for one in tagged] == ["alpha", "gamma"]
    for search, count in (("a", 3), ("%", 0), ("_", 0), ("' OR 1=1 --", 0)):
        found = (await server.client.get("/v1/vectors", params={"search": search})).json()["data"]
        assert len(found) == count
    for bad in ({"cursor": "nonsense"}, {"limit": 0}, {"limit": 201}, {"limit": "x"}, {"sort": "name"}):
        assert (await server.client.get("/v1/vectors", params=bad)).status_code == 400


async def test_combine_weighs_and_orthogonalises(server: Server) -> None:
    await server.register()
    other = {"name": "other", "directions": {"1": [1.0, *[0.0] * (D_MODEL - 1)]}}
    await server.client.post("/v1/vectors", json=other)
    body = {"name": "both", "terms": [{"vector": "sentiment", "weight": 2}], "orthogonal_to": ["other"]}
    both = (await server.client.post("/v1/vectors/combine", json=body)).json()
    assert (both["layers"], both["method"]) == ([1], "combine")
    assert both["scale"]["1"] == pytest.approx(2 * math.sqrt(D_MODEL - 1))
    numbers = (await server.client.get("/v1/vectors/both/directions")).json()["1"]
    assert numbers[0] == pytest.approx(0, abs=1e-6)
    missing = await server.client.post("/v1/vectors/combine", json={"name": "x", "terms": [{"vector": "nobody"}]})
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "vector_not_found")


async def test_similar_orders_by_cosine(server: Server) -> None:
    await server.register("one")
    await server.register("same")
    await server.client.post("/v1/vectors", json={"name": "first", "directions": {"1": [1.0, *[0.0] * 7]}})
    found = (await server.client.get("/v1/vectors/one/similar")).json()["data"]
    assert [one["id"] for one in found] == ["same@1", "first@1"]
    assert found[0]["cosine"] == pytest.approx({"1": 1.0, "2": 1.0})
    assert found[1]["cosine"]["1"] == pytest.approx(1 / math.sqrt(8))


async def test_a_file_goes_out_and_comes_back_the_same(server: Server) -> None:
    vector = await server.register(description="warm")
    exported = await server.client.get("/v1/vectors/sentiment/export")
    assert exported.headers["content-disposition"] == 'attachment; filename="sentiment-1.safetensors"'
    assert torch.equal(decode(exported.content).layers[1].direction, torch.ones(8) / torch.ones(8).norm())
    octets = {"content-type": "application/octet-stream"}
    back = await server.client.post("/v1/vectors/import?name=copy", content=exported.content, headers=octets)
    assert back.status_code == 201, back.text
    assert {**back.json(), "name": "sentiment", "id": "sentiment@1", "created_at": vector["created_at"]} == vector
    words = (await server.client.get("/v1/vectors/sentiment/export", params={"format": "json"})).json()
    assert set(words["directions"]) == {"1", "2"}
    assert (await server.client.get("/v1/vectors/sentiment/export?format=pt")).json()["error"]["param"] == "format"


async def control_vector(server: Server, file: Path, query: str = "") -> dict[str, list[float]]:
    """Tensors of an exported control vector, as the gguf package reads them."""
    exported = await server.client.get(f"/v1/vectors/sentiment/export?format=gguf{query}")
    assert exported.status_code == 200, exported.text
    assert exported.headers["content-type"] == "application/octet-stream"
    assert exported.headers["content-disposition"] == 'attachment; filename="sentiment-1.gguf"'
    return await asyncio.to_thread(tensors_in, exported.content, file)


def tensors_in(content: bytes, file: Path) -> dict[str, list[float]]:
    file.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {tensor.name: tensor.data.tolist() for tensor in GGUFReader(file).tensors}


async def test_a_control_vector_is_read_back_by_the_gguf_package(server: Server, tmp_path: Path) -> None:
    vector = await server.register(layers=(0, 1, 2), scale={"1": 2.0, "2": 3.0})
    directions = (await server.client.get("/v1/vectors/sentiment/directions")).json()

    async def check(query: str, layers: list[int]) -> None:
        tensors = await control_vector(server, tmp_path / "vector.gguf", query)
        assert list(tensors) == [f"direction.{layer}" for layer in layers]
        for layer in layers:
            scaled = [value * vector["scale"][str(layer)] for value in directions[str(layer)]]
            assert tensors[f"direction.{layer}"] == pytest.approx(scaled, rel=1e-6)

    await check("", [layer for layer in vector["recommended"]["layers"] if layer > 0])
    await check("&layers=recommended", [layer for layer in vector["recommended"]["layers"] if layer > 0])
    await check("&layers=all", [1, 2])
    await check("&layers=2", [2])


@pytest.mark.parametrize(
    "query", ["format=gguf&layers=0,1", "format=gguf&layers=7", "format=gguf&layers=some", "layers=1", "format=json&layers=1"]
)  # fmt: skip
async def test_layers_that_cannot_be_exported_are_refused(server: Server, query: str) -> None:
    await server.register(layers=(0, 1, 2))
    refused = await server.client.get(f"/v1/vectors/sentiment/export?{query}")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "layers")
    await server.register("bottom", layers=(0,))
    assert (await server.client.get("/v1/vectors/bottom/export?format=gguf&layers=all")).status_code == 400


@pytest.mark.parametrize("content", [b"PK\x03\x04", b"\x80\x04pickle", b"GGUF", b"\x93NUMPY", b"", b"x" * 100])
async def test_other_files_are_not_read(server: Server, content: bytes) -> None:
    headers = {"content-type": "application/octet-stream"}
    answer = await server.client.post("/v1/vectors/import?name=a", content=content, headers=headers)
    assert answer.status_code in (400, 415)
    json_instead = await server.client.post("/v1/vectors/import?name=a", json={})
    assert (json_instead.status_code, json_instead.json()["error"]["code"]) == (415, "unsupported_media_type")


async def test_patch_changes_words_only(server: Server) -> None:
    before = await server.register()
    patched = (await server.client.patch("/v1/vectors/sentiment", json={"description": "new", "tags": ["t"]})).json()
    assert (patched["description"], patched["tags"], patched["sha256"]) == ("new", ["t"], before["sha256"])
    kept = (await server.client.patch("/v1/vectors/sentiment", json={"tags": []})).json()
    assert (kept["description"], kept["tags"]) == ("new", [])
    assert (await server.client.patch("/v1/vectors/sentiment", json={"version": 9})).status_code == 400


async def test_delete_refuses_while_a_profile_uses_it_and_numbers_are_not_given_again(server: Server) -> None:
    await server.register()
    await server.client.put("/v1/profiles/p", json={"interventions": [{"vector": "sentiment"}]})
    refused = await server.client.delete("/v1/vectors/sentiment")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "vector_in_use")
    assert (await server.client.delete("/v1/vectors/sentiment?force=true")).status_code == 204
    assert (await server.client.get("/v1/vectors/sentiment")).status_code == 404
    assert (await server.register())["version"] == 2


async def test_unknown_and_unlawful_addresses_answer_in_the_same_shape(server: Server) -> None:
    for method, path in (("GET", "nobody"), ("PATCH", "nobody"), ("DELETE", "nobody"), ("GET", "nobody/similar")):
        body: dict[str, list[str]] | None = {"tags": []} if method == "PATCH" else None
        answer = await server.client.request(method, f"/v1/vectors/{path}", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "vector_not_found")
    for path in ("%2e%2e", "a%00b", "A", "x" * 300, "a%0d%0ab", "a@0", "a@-1", "a@x", "a@" + "9" * 5000):
        answer = await server.client.get(f"/v1/vectors/{path}")
        assert answer.status_code in (400, 404), path
        assert answer.json()["error"]["code"] in ("invalid_request", "not_found")
