"""POST /v1/evaluations: a request that cannot be evaluated or that exceeds a limit is rejected before a job is created."""

from typing import Any

import pytest

from tests.app.api.evaluation_bodies import DOSE, SWEEP
from tests.app.conftest import Server, StartServer
from tests.fakes import ScriptedEngine

REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"kind": "magic"}, "invalid_request", "kind"),
    ({"kind": None}, "invalid_request", "kind"),
    ({"vector": "nothing"}, "vector_not_found", "vector"),
    ({"reader": "nothing"}, "vector_not_found", "vector"),
    ({"strengths": [0]}, "invalid_request", "strengths"),
    ({"strengths": []}, "invalid_request", "strengths"),
    ({"layers": [0]}, "invalid_request", "layers"),
    ({"layers": [9]}, "invalid_request", "layers"),
    ({"reading_layer": 0}, "invalid_request", "layers"),
    ({"scorer": "magic"}, "invalid_request", "scorer"),
    ({"scorer": "probe"}, "invalid_request", "scorer"),
    ({"random_directions": 33}, "invalid_request", "random_directions"),
    ({"prompts": []}, "invalid_request", "prompts"),
    ({"prompts": ["a" * 5000]}, "context_length_exceeded", "prompts"),
    ({"neutral": []}, "invalid_request", "neutral"),
    ({"concept": "sentiment"}, "invalid_request", ""),
    ({"prompts": None, "concept": "nothing"}, "concept_not_found", "concept"),
    ({"max_tokens": 513}, "invalid_request", "max_tokens"),
    ({"judge": "http://169.254.169.254/"}, "invalid_request", "judge"),
    ({**SWEEP, "random_directions": 1}, "invalid_request", "random_directions"),
    ({**SWEEP, "save": True}, "invalid_request", "save"),
    ({**SWEEP, "strengths": [-1, 1]}, "invalid_request", "strengths"),
    ({**SWEEP, "strengths": [3], "unit": "kl"}, "invalid_request", "strengths"),
    ({**SWEEP, "operations": ["clamp"]}, "invalid_request", "operations"),
    ({**SWEEP, "prompts": ["one"]}, "invalid_request", "prompts"),
    ({**SWEEP, "vectors": ["nobody"]}, "vector_not_found", "vector"),
    ({"kind": "calibration", "vector": "mood", "layers": [9]}, "invalid_request", "layers"),
]


@pytest.mark.parametrize(("wrong", "code", "param"), REFUSED)
async def test_what_cannot_be_evaluated_is_rejected_at_once_and_not_by_a_job(
    server: Server, wrong: dict[str, Any], code: str, param: str
) -> None:
    await server.register("mood")
    base = {} if wrong.get("kind") in ("layer_sweep", "calibration") else DOSE
    body = {key: value for key, value in {**base, **wrong}.items() if value is not None}
    answer = await server.client.post("/v1/evaluations", json=body)
    assert answer.status_code in (400, 404), answer.text
    error = answer.json()["error"]
    assert (error["code"], (error["param"] or "").partition(".")[0]) == (code, param)
    assert (await server.client.get("/v1/jobs")).json()["data"] == []


@pytest.mark.parametrize(
    ("body", "answers"),
    [
        (
            {**DOSE, "prompts": ["a", "b"], "strengths": [1, 2, 3], "random_directions": 2},
            (3 * 3 + 4) * 2 + 1 + (3 + 1),
        ),
        ({**SWEEP, "prompts": ["a", "b"], "strengths": [1, 2]}, 2 * 2 + 4 + 9 * 2 + 4 + 8 * (1 + 2 * 2 + 2 + 2)),
        ({"kind": "calibration", "vector": "mood", "layers": [1], "neutral": ["a"]}, 1 + (2 + 1) * 8),
    ],
)
async def test_the_answers_an_evaluation_writes_are_bounded(
    start: StartServer, body: dict[str, Any], answers: int
) -> None:
    for bound, status in ((answers, 202), (answers - 1, 400)):
        server = await start(ScriptedEngine(length=1), max_evaluation_answers=bound)
        await server.register("mood")
        answer = await server.client.post("/v1/evaluations", json=body)
        assert answer.status_code == status, answer.text
        if status == 400:
            assert answer.json()["error"]["code"] == "limit_exceeded"
