"""POST /v1/evaluations with kind "report": the verdicts, what is refused before any work, and the written documents."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from steering.client.results import Report
from steering.concepts import CONCEPTS
from tests.app.api.evaluation_bodies import PROMPTS
from tests.app.api.test_evaluate import evaluated, planted
from tests.app.conftest import Server, StartServer
from tests.families import FAMILIES
from tests.steering.workflows.linear import LinearEngine

REPORT: dict[str, Any] = {
    "kind": "report",
    "vector": "mood",
    "steering": [{"vector": "mood", "layers": [2], "strength": 0.8}],
    "reading_layer": 2,
    "prompts": [[{"role": "user", "content": text}] for text in PROMPTS[:4]],
    "neutral": ["the train"],
    "max_tokens": 12,
    "temperature": 1.0,
    "seeds": [0],
    "side_effects": ["mood"],
}


@pytest.fixture
async def linear(start: StartServer) -> Server:
    """A server over the model whose answers are known by heart, with its concept as the vector `mood`."""
    engine = LinearEngine()
    server = await start(engine)
    await planted(server, engine)
    return server


async def test_a_report_judges_the_gates_and_can_be_written_down(linear: Server) -> None:
    found = await evaluated(linear, REPORT)
    assert (found["kind"], found["vector"], found["direction"], found["reading_layer"]) == ("report", "mood@1", "up", 2)
    (seed,) = found["seeds"]
    assert [gate["name"] for gate in seed["gates"]] == ["control", "utility", "robustness"]
    assert seed["gates"][0]["checks"][0]["value"] > 0.2
    assert [one["vector"] for one in seed["side_effects"]] == ["mood"]
    assert found["interventions"][0]["vector"] == "mood@1"
    assert found["thresholds"]["perplexity"] == 1.5
    report = Report.model_validate(found)
    text = seed["texts"][0]["steered"]
    assert text in report.markdown()
    assert text in report.page()
    assert len(report.rows()) == sum(len(gate["checks"]) for gate in seed["gates"])
    assert json.loads(report.model_dump_json())["passed"] == found["passed"]


async def test_the_vector_that_is_judged_is_no_side_effect_of_itself(linear: Server) -> None:
    """Nor is the starter concept of its name, which would be extracted otherwise."""
    assert isinstance(linear.engine, LinearEngine)
    for name in CONCEPTS:
        await planted(linear, linear.engine, name)
    for name in ("mood", "sentiment"):
        body = {**REPORT, "vector": name, "steering": [{"vector": name, "layers": [2], "strength": 0.8}]}
        found = await evaluated(linear, {**body, "prompts": REPORT["prompts"][:2], "varied": 1, "side_effects": None})
        assert {one["vector"] for one in found["seeds"][0]["side_effects"]} == {"mood", *CONCEPTS} - {name}


async def test_markup_in_texts_is_shown_and_not_interpreted(linear: Server) -> None:
    found = await evaluated(linear, {**REPORT, "prompts": [[{"role": "user", "content": "<b>| the road"}]] * 2})
    report = Report.model_validate(found)
    assert "<b>" not in report.page()
    assert "&lt;b>\\| the road" in report.markdown()


async def test_as_many_prompts_are_varied_as_asked_and_samples_are_averaged(linear: Server) -> None:
    found = await evaluated(linear, {**REPORT, "samples": 2, "varied": 3})
    (seed,) = found["seeds"]
    (once,) = (await evaluated(linear, {**REPORT, "varied": 3}))["seeds"]
    for one in (seed, once):
        assert sum(text["variation"] == "typos" for text in one["texts"]) == 3
    assert [text["steered"] for text in seed["texts"]] == [text["steered"] for text in once["texts"]]
    assert seed["moved"] != once["moved"]


async def test_a_profile_is_judged_as_it_is_deployed(linear: Server) -> None:
    stored = {"interventions": [{"vector": "mood", "operation": "clamp", "high": -0.5, "layers": [2]}]}
    assert (await linear.client.put("/v1/profiles/grim", json=stored)).status_code in (200, 201)
    found = await evaluated(linear, {**REPORT, "steering": {"profile": "grim"}})
    assert found["direction"] == "down"
    assert found["interventions"][0]["high"] == -0.5
    assert any("no random controls" in warning for warning in found["warnings"])


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"steering": None}, "strength", "has no measured strength"),
        ({"steering": []}, "steering", "must change something"),
        ({"steering": None, "strength": 0}, "strength", "must not be 0"),
        ({"strength": 1.0}, None, "not both"),
        ({"concept": "sentiment"}, None, "not both"),
        ({"prompts": []}, "prompts", ""),
        ({"seeds": [1, 2, 3, 4, 5]}, "seeds", ""),
        ({"side_effects": ["nobody"]}, None, "nobody"),
        ({"samples": 9}, "samples", ""),
        ({"varied": 0}, "varied", ""),
        (
            {"samples": 8, "seeds": [0, 1, 2, 3], "prompts": ["the road"] * 100},
            "prompts",
            "answers to generate and read",
        ),
        ({"prompts": ["road " * 490]}, "prompts", "under the variation 'role' the prompt has 504 tokens"),
        ({"thresholds": {"perplexity": 0.5}}, "thresholds.perplexity", ""),
        ({"reading_layer": 0}, "layers", "no direction at layer 0"),
        ({"steering": [{"vector": {"directions": {"2": [1.0] * 96}}}]}, "steering", "register the inline directions"),
        ({"steering": [{"vector": "mood", "operation": "ablate", "layers": [2]}]}, "direction", "has no sign"),
    ],
)
async def test_what_makes_no_sense_is_refused_at_once(
    linear: Server, change: dict[str, Any], param: str | None, message: str
) -> None:
    answer = await linear.client.post("/v1/evaluations", json={**REPORT, **change})
    assert answer.status_code in (400, 404), answer.text
    error = answer.json()["error"]
    assert message in error["message"]
    assert param is None or error["param"] == param, error


async def test_a_second_model_reads_the_answers(
    start: StartServer, hf_byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """It is loaded from a folder, learns the concept from its pairs, and has its say in the gate of control."""
    FAMILIES["llama"]().save_pretrained(tmp_path / "second")
    hf_byte_tokenizer.save_pretrained(tmp_path / "second")
    engine = LinearEngine()
    server = await start(engine, scorer_model=str(tmp_path / "second"), cache_dir=tmp_path, device="cpu")
    await planted(server, engine)
    body = {key: value for key, value in REPORT.items() if key != "prompts"} | {"concept": "truthfulness"}
    found = await evaluated(server, body)
    checks = {check["name"]: check for check in found["seeds"][0]["gates"][0]["checks"]}
    assert {"shift.second", "agreement.second"} <= set(checks)
    assert -1.0 <= checks["agreement.second"]["value"] <= 1.0
    assert any("second reads the answers at layer" in warning for warning in found["warnings"])
