"""Maps over HTTP: what is given comes back, in files too, is applied to requests, and what is no map is refused."""

from typing import Any

import pytest
import torch

from steering.injection.injector import Injector
from steering.injection.slots import Slots
from tests.app.conftest import D_MODEL, Server
from tests.steering.injection.passes import begun, row_of

FEATURE: dict[str, Any] = {
    "read": [[0.5] * D_MODEL, [0.0, 1.0] * (D_MODEL // 2)],
    "write": [[2.0] + [0.0] * (D_MODEL - 1), [0.0, 1.0] + [0.0] * (D_MODEL - 2)],
    "bias": [-1.0, 0.5],
    "activation": "relu",
}
APPLY = {"vector": "feature", "operation": "apply", "strength": 0.5, "layers": [1]}


async def register(server: Server, **fields: Any) -> Any:
    answer = await server.client.post("/v1/vectors", json={"name": "feature", "maps": {"1": FEATURE}, **fields})
    assert answer.status_code == 201, answer.text
    return answer.json()


async def test_a_map_alone_makes_a_vector_and_gives_its_direction(server: Server) -> None:
    vector = await register(server)
    assert (vector["layers"], vector["maps"]) == ([1], {"1": {"rank": 2, "activation": "relu"}})
    assert vector["scale"] == {"1": pytest.approx(2.0)}
    assert vector["quality"] is None
    (listed,) = (await server.client.get("/v1/vectors")).json()["data"]
    assert listed == vector
    both = await register(server, directions={"1": [3.0] * D_MODEL, "2": [1.0] * D_MODEL}, scale={"1": 7.0})
    assert (both["layers"], both["scale"]["1"], list(both["maps"])) == ([1, 2], 7.0, ["1"])
    assert (await server.register("plain"))["maps"] == {}


async def test_files_bring_it_back(server: Server) -> None:
    await register(server)
    exported = (await server.client.get("/v1/vectors/feature/export", params={"format": "json"})).json()
    assert exported["map_numbers"] == {"1": FEATURE}
    content = (await server.client.get("/v1/vectors/feature/export")).content
    headers = {"Content-Type": "application/octet-stream"}
    back = await server.client.post("/v1/vectors/import?name=again", content=content, headers=headers)
    assert back.status_code == 201, back.text
    again = (await server.client.get("/v1/vectors/again/export", params={"format": "json"})).json()
    assert (again["map_numbers"], again["sha256"]) == (exported["map_numbers"], exported["sha256"])


async def test_a_request_applies_it_and_says_so(server: Server) -> None:
    await register(server)
    answer = await server.client.post("/v1/generate", json={"prompt": "a", "max_tokens": 2, "steering": [APPLY]})
    assert answer.status_code == 200, answer.text
    (applied,) = answer.json()["steering"]["applied"]
    assert (applied["operation"], applied["strength"], applied["layers"]) == ("apply", 0.5, [1])
    assert "unit" not in applied
    plan = server.scripted.requests[-1].plan
    injector, row = Injector(Slots(3, D_MODEL, torch.device("cpu"))), row_of(plan, 1, 0)
    injector.admit(row)
    injection, _, _ = begun(injector, [(row, 1)])
    residual = torch.arange(1.0, D_MODEL + 1.0)[None]
    first, second = 0.5 * residual.sum() - 1.0, residual[0, 1::2].sum() + 0.5
    change = injection.apply(1, residual.clone()) - residual
    assert change[0, :2].tolist() == pytest.approx([0.5 * float(first) * 2.0, 0.5 * float(second)])


async def test_profiles_keep_it(server: Server) -> None:
    await register(server)
    stored = await server.client.put("/v1/profiles/p", json={"interventions": [APPLY]})
    assert stored.status_code == 200, stored.text
    answer = await server.client.post(
        "/v1/generate", json={"prompt": "a", "max_tokens": 1, "steering": {"profile": "p"}}
    )
    assert answer.json()["steering"]["applied"][0]["operation"] == "apply"


@pytest.mark.parametrize(
    ("maps", "code", "message"),
    [
        ({}, "invalid_request", "maps"),
        ({"1": FEATURE | {"bias": [1.0]}}, "invalid_request", "as many entries"),
        ({"1": FEATURE | {"write": FEATURE["write"][:1]}}, "invalid_request", "as many entries"),
        ({"1": FEATURE | {"activation": "gelu"}}, "invalid_request", "activation"),
        ({"1": FEATURE | {"rank": 2}}, "invalid_request", "not known"),
        ({"1": {"read": [[1.0] * D_MODEL] * 17, "write": [[1.0] * D_MODEL] * 17}}, "invalid_request", "16"),
        ({"1": FEATURE | {"read": [[1e39] * D_MODEL] * 2}}, "invalid_request", "finite"),
        ({"1": FEATURE | {"write": [[0.0] * D_MODEL] * 2}}, "invalid_request", "writes nothing"),
        ({"1": FEATURE | {"read": [[1.0] * D_MODEL, [1.0]]}}, "vector_model_mismatch", "have [1, 8] numbers"),
        ({"9": FEATURE}, "vector_model_mismatch", "9"),
        ({"1": {"read": [[1.0] * 3], "write": [[1.0] * 3]}}, "vector_model_mismatch", "expected (1, 8)"),
    ],
)
async def test_what_is_no_map_is_refused(server: Server, maps: Any, code: str, message: str) -> None:
    answer = await server.client.post("/v1/vectors", json={"name": "a", "maps": maps})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, code), error
    assert message in error["message"] or message in (error["param"] or "")


async def test_neither_direction_nor_map_and_a_vector_without_one_are_refused(server: Server) -> None:
    answer = await server.client.post("/v1/vectors", json={"name": "a"})
    assert "give 'directions', 'maps' or both" in answer.json()["error"]["message"]
    await server.register("plain")
    item = {"vector": "plain", "operation": "apply"}
    answer = await server.client.post("/v1/generate", json={"prompt": "a", "steering": [item]})
    assert answer.status_code == 400
    assert "needs a map, which vector 'plain' does not have" in answer.json()["error"]["message"]
