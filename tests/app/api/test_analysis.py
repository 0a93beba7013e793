"""Readout, latent space and logit lens over HTTP: planted answers come back, limits hold, and what cannot be is refused."""

from typing import Any

import pytest
import torch

from steering.engine.transformers.engine import TransformersEngine
from steering.model.loading import LoadedModel
from tests.app.conftest import D_MODEL, Server, StartServer
from tests.fakes import ScriptedEngine
from tests.families import FAMILIES
from tests.polling import until
from tests.scripted_model import PLANTED_WORD, planted_direction

TEXTS = [*(f"good day {i}" for i in range(6)), *(f"bad day {i}" for i in range(6))]
LABELS = ["good"] * 6 + ["bad"] * 6


async def planted(server: Server, name: str = "mood") -> dict[str, Any]:
    """The planted direction as a vector at layers 1 and 2; the poles lie 2 apart."""
    direction = planted_direction().tolist()
    body = {"name": name, "directions": {"1": direction, "2": direction}, "scale": {"1": 2.0, "2": 2.0}}
    answer = await server.client.post("/v1/vectors", json=body)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def asked(server: Server, route: str, /, **body: Any) -> dict[str, Any]:
    answer = await server.client.post(f"/v1/{route}", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_a_readout_finds_what_was_planted_in_each_token(server: Server) -> None:
    vector = await planted(server)
    found = await asked(server, "readout", texts=["good day", "bad day"], vectors=["mood", "mood@1"], layers=[1, -2])
    assert found["vectors"] == {name: {"id": "mood@1", "sha256": vector["sha256"]} for name in ("mood", "mood@1")}
    for text, sign in zip(found["texts"], (1, -1), strict=True):
        assert [token["text"] for token in text["tokens"]] == list("good day" if sign > 0 else "bad day")
        assert text["readout"]["mood"] == text["readout"]["mood@1"]
        assert list(text["readout"]["mood"]) == ["1", "2"]
        for layer in text["readout"]["mood"].values():
            assert layer["scores"] == pytest.approx([sign * 0.5] * len(text["tokens"]), abs=0.2)
            assert layer["mean"] == pytest.approx(sum(layer["scores"][1:]) / (len(layer["scores"]) - 1))
            assert (layer["max"], layer["last"]) == (max(layer["scores"][1:]), layer["scores"][-1])


async def test_a_conversation_is_one_text(server: Server) -> None:
    await planted(server)
    chat = [{"role": "user", "content": "How was it?"}, {"role": "assistant", "content": "good"}]
    one = await asked(server, "readout", messages=chat, vectors=["mood"])
    assert one == await asked(server, "readout", texts=[chat], vectors=["mood"])
    assert one["texts"][0]["readout"]["mood"]["2"]["last"] > 0


async def test_a_map_draws_labels_apart_with_the_vector_between_them(server: Server) -> None:
    await planted(server)
    found = await asked(
        server, "latent-space", texts=TEXTS, labels=LABELS, layers=[0, 2], vectors=["mood"], path=0, embeddings=True
    )
    assert [one["layer"] for one in found["layers"]] == [0, 2]
    assert found["embedding"]["layer"] is None
    for one in (*found["layers"], found["embedding"]):
        assert [len(one["points"]), {len(point) for point in one["points"]}] == [12, {2}]
        assert len(one["explained_variance"]) == 2
    assert found["layers"][1]["separability"]["auroc"] == 1.0
    assert found["layers"][1]["separability"]["silhouette"] > 0.5 > found["embedding"]["separability"]["silhouette"]
    (drawn,) = found["layers"][1]["segments"]
    assert drawn["vector"] == "mood"
    assert drawn["visible"] > 0.9
    assert found["layers"][0]["segments"] == [], "the vector has no layer 0"
    assert [len(found["path"][key]) for key in ("layers", "text", "mean")] == [2, 2, 2]
    assert found["warnings"] == []


async def test_maps_that_are_not_linear_have_points_alone(server: Server) -> None:
    """umap, whose first call compiles for half a minute, has the contract of projections."""
    await planted(server)
    body = {"texts": TEXTS, "layers": [1], "method": "tsne", "dims": 3, "vectors": ["mood"], "seed": 4}
    one, other = await asked(server, "latent-space", **body), await asked(server, "latent-space", **body)
    assert one == other
    (drawn,) = one["layers"]
    assert {len(point) for point in drawn["points"]} == {3}
    assert (drawn["explained_variance"], drawn["segments"], drawn["separability"]) == (None, [], None)


async def test_a_reading_that_takes_too_long_is_ended_and_frees_its_place(start: StartServer) -> None:
    server = await start(ScriptedEngine(token_seconds=0.2), request_seconds=0.3)
    answer = await server.client.post("/v1/latent-space", json={"texts": TEXTS})
    assert answer.json()["error"]["code"] == "request_timed_out"
    await until(lambda: server.engine.stats().running == 0)
    assert server.state.rows.reserved == 0


async def test_the_lens_says_what_a_residual_would_become(server: Server) -> None:
    await planted(server)
    found = await asked(server, "logit-lens", prompt="good", layers=[1, 3], top_k=3)
    assert [token["text"] for token in found["tokens"]] == list("good")
    assert found["steering"] == {"vectors": {}, "fingerprint": "", "warnings": []}
    assert [one["layer"] for one in found["layers"]] == [1, 3]
    for one in found["layers"]:
        assert one["steered"] is None
        assert [row[0]["id"] for row in one["plain"]] == [PLANTED_WORD] * 4
        for row in one["plain"]:
            assert [best["logprob"] for best in row] == sorted((best["logprob"] for best in row), reverse=True)


async def test_the_lens_lists_as_many_tokens_as_the_server_allows(start: StartServer) -> None:
    server = await start(max_top_logprobs=2)
    await planted(server)
    found = await asked(server, "logit-lens", prompt="good", layers=[1])
    assert [len(row) for row in found["layers"][0]["plain"]] == [2] * 4
    refused = await server.client.post("/v1/logit-lens", json={"prompt": "good", "top_k": 3})
    assert refused.json()["error"]["code"] == "limit_exceeded"


async def test_the_lens_with_steering_has_both_readings(server: Server) -> None:
    vector = await planted(server)
    body = {"messages": [{"role": "user", "content": "good"}], "layers": [2]}
    found = await asked(server, "logit-lens", steering=[{"vector": "mood", "strength": 0.1}], **body)
    assert found["steering"]["vectors"] == {"mood@1": vector["sha256"]}
    assert len(found["layers"][0]["steered"]) == len(found["layers"][0]["plain"]) == len(found["tokens"])
    await server.client.put("/v1/steering", json={"interventions": [{"vector": "mood", "strength": 0.1}]})
    assert (await asked(server, "logit-lens", **body)) == found
    assert (await asked(server, "logit-lens", steering=[], **body))["layers"][0]["steered"] is None


REFUSED: list[tuple[str, dict[str, Any], str, str | None]] = [
    ("readout", {"texts": ["a"], "vectors": ["nothing"]}, "vector_not_found", "vector"),
    ("readout", {"texts": ["a"], "vectors": []}, "invalid_request", "vectors"),
    ("readout", {"texts": [], "vectors": ["mood"]}, "invalid_request", "texts"),
    ("readout", {"vectors": ["mood"]}, "invalid_request", None),
    ("readout", {"texts": ["a"], "messages": [{"role": "user", "content": "a"}], "vectors": ["mood"]},
     "invalid_request", None),
    ("readout", {"texts": ["a"], "vectors": ["mood"], "layers": [0]}, "invalid_request", "layers"),
    ("readout", {"texts": ["a" * 5000], "vectors": ["mood"]}, "context_length_exceeded", "texts"),
    ("readout", {"texts": ["a"], "vectors": ["mood"], "url": "x"}, "invalid_request", "url"),
    ("latent-space", {"texts": TEXTS, "method": "magic"}, "invalid_request", "method"),
    ("latent-space", {"texts": TEXTS, "dims": 4}, "invalid_request", "dims"),
    ("latent-space", {"texts": TEXTS, "labels": ["a"]}, "invalid_request", "labels"),
    ("latent-space", {"texts": TEXTS, "layers": [9]}, "invalid_request", "layers"),
    ("latent-space", {"texts": TEXTS, "position": "all"}, "invalid_request", "position"),
    ("latent-space", {"texts": TEXTS, "path": 12}, "invalid_request", "path"),
    ("latent-space", {"texts": TEXTS[:3]}, "invalid_request", "texts"),
    ("latent-space", {"texts": TEXTS, "vectors": ["nothing"]}, "vector_not_found", "vector"),
    ("logit-lens", {"prompt": "a", "top_k": 0}, "invalid_request", "top_k"),
    ("logit-lens", {"prompt": "a", "top_k": 21}, "limit_exceeded", "top_k"),
    ("logit-lens", {"prompt": "a", "layers": [4]}, "invalid_request", "layers"),
    ("logit-lens", {"prompt": "a" * 5000}, "context_length_exceeded", "prompt"),
    ("logit-lens", {"prompt": "a", "steering": [{"vector": "nothing"}]}, "vector_not_found", "vector"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "code", "param"), REFUSED)
async def test_what_cannot_be_read_is_refused(
    server: Server, path: str, body: dict[str, Any], code: str, param: str | None
) -> None:
    await planted(server)
    answer = await server.client.post(f"/v1/{path}", json=body)
    assert answer.status_code in (400, 404), answer.text
    error = answer.json()["error"]
    assert (error["code"], (error["param"] or "").partition(".")[0] or None) == (code, param)
    assert server.scripted.captured == [] or path == "latent-space"


async def test_another_models_vector_is_refused(start: StartServer, server: Server) -> None:
    await planted(server)
    vector = await server.state.store.shared.vectors.get("mood")
    other = await start(ScriptedEngine())
    object.__setattr__(vector, "model_fingerprint", "another")
    await other.state.store.shared.vectors.put(vector)
    for path, body in (("readout", {"texts": ["a"]}), ("latent-space", {"texts": TEXTS})):
        answer = await other.client.post(f"/v1/{path}", json={**body, "vectors": ["mood"]})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "vector_model_mismatch")


@pytest.mark.parametrize(
    ("path", "body", "numbers"),
    [
        ("readout", {"texts": ["abc", "de"], "vectors": ["mood"], "layers": "all"}, 5 * 2 * D_MODEL),
        ("latent-space", {"texts": TEXTS, "layers": [0, 1, 2]}, 12 * 3 * D_MODEL),
        ("logit-lens", {"prompt": "abc", "layers": [0, 1]}, 3 * 2 * D_MODEL),
        ("logit-lens", {"prompt": "abc", "layers": [1], "steering": [{"vector": "mood"}]}, 3 * 2 * D_MODEL),
    ],
)
async def test_the_bound_on_activations_counts_what_is_read(
    start: StartServer, path: str, body: dict[str, Any], numbers: int
) -> None:
    for bound, status in ((numbers, 200), (numbers - 1, 400)):
        server = await start(max_activations=bound)
        await planted(server)
        answer = await server.client.post(f"/v1/{path}", json=body)
        assert answer.status_code == status, answer.text
        if status == 400:
            assert answer.json()["error"]["code"] == "limit_exceeded"


@pytest.fixture
def tiny(tiny_loaded: LoadedModel) -> TransformersEngine:
    return TransformersEngine(tiny_loaded)


async def test_on_a_model_the_last_layer_of_the_lens_is_what_it_generates(
    start: StartServer, tiny: TransformersEngine
) -> None:
    server = await start(tiny)
    direction = torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(2)), dim=0)
    await server.client.post("/v1/vectors", json={"name": "any", "directions": {"1": direction.tolist()}})
    steering = [{"vector": "any", "strength": 20.0}]
    lens = await asked(server, "logit-lens", prompt="Hello there", steering=steering, top_k=1)
    wanted = {"prompt": "Hello there", "max_tokens": 1, "temperature": 0.0, "logprobs": True}
    for key, given in (("plain", []), ("steered", steering)):
        answer = await asked(server, "generate", **wanted, steering=given)
        (token,) = answer["choices"][0]["tokens"]
        (best,) = lens["layers"][-1][key][-1]
        assert best["id"] == token["id"]
        assert best["logprob"] == pytest.approx(token["logprob"], abs=1e-4)
    assert lens["layers"][0]["plain"] == lens["layers"][0]["steered"]
    assert lens["layers"][1]["plain"] != lens["layers"][1]["steered"]


async def test_on_a_model_a_readout_is_the_product_with_a_plain_hook(
    start: StartServer, tiny: TransformersEngine
) -> None:
    server = await start(tiny)
    direction = torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(2)), dim=0)
    body = {"name": "any", "directions": {"1": direction.tolist()}, "scale": {"1": 0.5}}
    await server.client.post("/v1/vectors", json=body)
    found = (await asked(server, "readout", texts=["Hello there"], vectors=["any"]))["texts"][0]
    model, read = FAMILIES["llama"](), []
    model.model.layers[1].register_forward_hook(lambda _m, _i, output: read.append(output[0]))
    with torch.no_grad():
        model(torch.tensor([[token["id"] for token in found["tokens"]]]))
    expected = (read[0] @ direction / 0.5).tolist()
    assert found["readout"]["any"]["1"]["scores"] == pytest.approx(expected, abs=1e-4)
