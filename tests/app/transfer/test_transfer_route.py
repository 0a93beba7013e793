"""POST /v1/vectors/transfer and `steer transfer`, with a second model from a folder."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from steering.engine.transformers.engine import TransformersEngine
from steering.model.loading import opened
from tests.app.cli.conftest import Steer
from tests.app.conftest import Server, StartServer
from tests.app.running import running
from tests.fakes import ScriptedEngine
from tests.scripted_model import SCRIPTED_MODEL
from tests.steering.lab.rotated import ANCHORS, PAIRS, planted

ROWS = [
    {"positive": one, "negative": other, "topic": topic}
    for (one, other), topic in zip(PAIRS, PAIRS.topics, strict=True)
]
BODY: dict[str, Any] = {"name": "mood", "pairs": ROWS, "anchors": list(ANCHORS), "from_layer": 1, "to_layer": 1}


def settings_over(folder: Path, tokenizer: PreTrainedTokenizerFast) -> tuple[TransformersEngine, dict[str, Any]]:
    """The turned model as the loaded one, and the other in a folder."""
    models = planted()
    models.model.save_pretrained(folder / "second")
    tokenizer.save_pretrained(folder / "second")
    engine = TransformersEngine(opened(models.turned, tokenizer, name="turned"))
    return engine, {"scorer_model": str(folder / "second"), "cache_dir": folder, "device": "cpu", "dtype": "float32"}


async def test_a_vector_is_carried_over_stored_and_steers(
    start: StartServer, hf_byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    engine, settings = settings_over(tmp_path, hf_byte_tokenizer)
    server = await start(engine, **settings)
    answer = await server.client.post("/v1/vectors/transfer?wait=true", json=BODY, timeout=60)
    assert answer.status_code == 201, answer.text
    found = answer.json()
    assert (found["vector"]["id"], found["vector"]["method"], found["from_model"]) == (
        "mood@1",
        "transferred",
        "second",
    )
    assert found["explained"] > 0.99
    assert found["cosine"] > 0.99
    assert set(found["auroc"]) == {"source", "native", "transferred", "random"}
    assert found["auroc"]["transferred"]["interval"][0] <= found["auroc"]["transferred"]["mean"]
    loss = (await server.client.get("/v1/vectors/mood")).json()["provenance"]["loss"]
    assert loss == {key: found[key] for key in ("explained", "cosine", "auroc", "warnings")}
    steered = {"prompt": "Hm", "max_tokens": 2, "steering": [{"vector": "mood", "strength": 1.0}]}
    assert (await server.client.post("/v1/generate", json=steered)).status_code == 200
    started = await server.client.post("/v1/vectors/transfer", json=BODY)
    assert started.status_code == 202
    assert "pairs" not in json.dumps(started.json().get("request", {}))


EFFECT = {"prompts": 3, "max_tokens": 4, "relative_dose": 0.1}


async def test_the_steering_effect_is_measured_against_a_named_vector_and_kept_with_the_loss(
    start: StartServer, hf_byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    engine, settings = settings_over(tmp_path, hf_byte_tokenizer)
    engine.info = replace(engine.info, typical_norms=(4.0,) * engine.info.layer_count)
    server = await start(engine, **settings)
    mine = {"name": "mine", "pairs": ROWS, "layers": [1]}
    assert (await server.client.post("/v1/vectors/extract?wait=true", json=mine)).status_code == 201
    by_default, named = [
        (await server.client.post("/v1/vectors/transfer?wait=true", json=BODY | {"effect": asked}, timeout=60)).json()
        for asked in (EFFECT, EFFECT | {"native": "mine"})
    ]
    effect = named["effect"]
    assert {key: effect[key] for key in EFFECT} == EFFECT
    assert (effect["native"], by_default["effect"]["native"]) == ("mine@1", None)
    assert set(effect["shift"]) == {"native", "transferred"}
    assert effect["chance"] > 0.0
    assert all(len(one["interval"]) == 2 for one in effect["shift"].values())
    again, first = (found["shift"]["transferred"] for found in (effect, by_default["effect"]))
    # the native vector's answers are read in the same batches, and rounding depends on these
    assert [again["mean"], *again["interval"]] == pytest.approx([first["mean"], *first["interval"]], abs=1e-5)
    loss = (await server.client.get("/v1/vectors/mood")).json()["provenance"]["loss"]
    assert loss["effect"] == effect


@pytest.mark.parametrize(
    ("effect", "status", "param"),
    [
        ({"native": "nowhere"}, 404, "vector"),
        ({"relative_dose": 0.25}, 400, "effect.relative_dose"),
        ({"prompts": 1}, 400, "effect.prompts"),
        ({"prompts": 64}, 400, "effect.prompts"),
        ({"max_tokens": 0}, 400, "effect.max_tokens"),
        ({"temperature": 1.0}, 400, "effect.temperature"),
    ],
)
async def test_an_effect_that_cannot_be_measured_is_refused_before_a_model_is_loaded(
    start: StartServer, effect: dict[str, Any], status: int, param: str
) -> None:
    server = await start(scorer_model="no-such-folder", max_evaluation_answers=500)
    policy = {"limits": {"max_relative_dose": 0.2}}
    assert (await server.client.put("/v1/policy", json=policy)).status_code == 200
    answer = await server.client.post("/v1/vectors/transfer", json=BODY | {"effect": effect})
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"concept": "sentiment"}, "exactly one of 'concept' and 'pairs'"),
        ({"anchors": ["a"]}, "1 anchor texts"),
        ({"to_layer": 99}, "99"),
        ({"direction": [1.0], "from_layer": None}, "needs 'from_layer'"),
        ({"position": "all"}, "position"),
    ],
)
async def test_what_makes_no_sense_is_refused_before_a_model_is_loaded(
    start: StartServer, change: dict[str, Any], word: str
) -> None:
    server = await start(scorer_model="no-such-folder")
    answer = await server.client.post("/v1/vectors/transfer", json=BODY | change)
    assert answer.status_code == 400, answer.text
    assert word in answer.text


async def test_all_layers_and_all_tokens_that_are_held_count(start: StartServer) -> None:
    """Pairs at each layer that is tried, and the tokens of the anchors that are read at a time; before a model is loaded."""
    engine = ScriptedEngine(info=replace(SCRIPTED_MODEL, layer_count=12, typical_norms=(1.0,) * 12))
    texts, tokens = 2 * len(PAIRS), sum(map(len, ANCHORS))
    most = texts * 3 * 8 - 1
    server = await start(engine, scorer_model="no-such-folder", max_activations=most)
    for change, param, given in (({"to_layer": None}, "pairs", most + 1), ({}, "anchors", tokens * 8)):
        answer = await server.client.post("/v1/vectors/transfer", json=BODY | change)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (400, "limit_exceeded", param)
        assert f"{given} activations" in error["message"]
        assert f"at most {most}" in error["message"]
    long = BODY | {"anchors": [*ANCHORS, "x" * 5000]}
    error = (await server.client.post("/v1/vectors/transfer", json=long)).json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "anchors")


async def test_the_second_model_has_the_same_bound(
    start: StartServer, hf_byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    _, settings = settings_over(tmp_path, hf_byte_tokenizer)
    bound = sum(map(len, ANCHORS)) * 8
    server = await start(ScriptedEngine(), max_activations=bound, **settings)
    answer = await server.client.post("/v1/vectors/transfer?wait=true", json=BODY, timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "limit_exceeded"), answer.text
    assert "anchors in second" in answer.json()["error"]["message"]


async def test_a_server_without_a_second_model_says_so(server: Server) -> None:
    answer = await server.client.post("/v1/vectors/transfer", json=BODY)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "unsupported_parameter"
    assert "STEERING_SCORER_MODEL" in answer.json()["error"]["message"]


def test_the_command_shows_the_loss(
    hf_byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine, settings = settings_over(tmp_path, hf_byte_tokenizer)
    engine.info = replace(engine.info, typical_norms=(4.0,) * engine.info.layer_count)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "anchors.txt").write_text("\n".join(ANCHORS))
    files = ("--pairs", str(tmp_path / "pairs.jsonl"), "--anchors", str(tmp_path / "anchors.txt"))
    with running(engine, **settings) as address:
        steer = Steer(address, capsys)
        shown = steer("transfer", "mood", *files, "--from-layer", "1", "--to-layer", "1")[0]
        measured = ("--effect", "--native", "mood", "--prompts", "2", "--dose", "0.1")
        effect = steer("transfer", "again", *files, "--from-layer", "1", "--to-layer", "1", *measured)[0]
        assert "--concept" in steer("transfer", "mood", code=2)[1]
    assert "transferred" in shown
    assert "second to turned" in shown
    assert "layer 1 to layer 1" in shown
    assert re.search(r"native .* \d\.\d\d \(\d\.\d\d to \d\.\d\d\)", shown) is not None
    assert "shift" not in shown
    assert "shift: 2 neutral prompts, 32 tokens, relative dose 0.1; native: mood@1" in effect
    assert re.search(r"transferred .* [+-]\d\.\d\d \([+-]\d.*, margin [+-]\d", " ".join(effect.split())) is not None
    assert re.search(r"random .* one in twenty beyond \d", " ".join(effect.split())) is not None
