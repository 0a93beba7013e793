"""A report judges the operating point that a user gets: the largest measured strength, or one planned dose."""

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.quality.reports.gates import (
    DOSE,
    MORE_SAMPLES,
    SAMPLES,
    direction_of,
    operating_strength,
    planned,
    until_agreed,
)
from steering.quality import Recommended
from steering.spec import InterventionSpec
from tests.steering.workflows.linear import GAIN, LAYERS, LinearEngine
from tests.steering.workflows.vectors import planted_vector

NORMS = (2.0 * GAIN,) * LAYERS


@pytest.mark.parametrize(
    ("claimed", "strength"),
    [
        (Recommended((2,), (1.0, 3.5), (-2.0, -1.0)), 3.5),
        (Recommended((2,), None, (-1.8, -1.1)), -1.8),
        (Recommended((2,), None, None), 2.0 * DOSE),
        (Recommended((1,), (1.0, 3.5), None), 2.0 * DOSE),
    ],
)
def test_the_largest_measured_strength_is_judged_and_a_dose_where_none_holds(
    claimed: Recommended, strength: float
) -> None:
    engine = LinearEngine()
    vector = replace(planted_vector(engine), recommended=claimed)
    found = operating_strength(replace(engine.info, typical_norms=NORMS), vector, (2,))
    assert found == pytest.approx(strength)


def test_several_layers_share_the_dose() -> None:
    engine = LinearEngine()
    info = replace(engine.info, typical_norms=NORMS)
    assert operating_strength(info, planted_vector(engine), (1, 2)) == pytest.approx(DOSE)


@pytest.mark.parametrize(
    ("item", "direction"),
    [
        ({"strength": 1.5}, 1),
        ({"strength": -1.5}, -1),
        ({"operation": "clamp", "low": 0.7, "high": 0.7}, 1),
        ({"operation": "clamp", "low": -0.7, "high": -0.7}, -1),
    ],
)
async def test_a_report_expects_the_concept_to_move_by_the_sign_of_the_strength_or_level(
    item: dict[str, Any], direction: int
) -> None:
    engine = LinearEngine()
    vector = replace(planted_vector(engine), version=1)
    spec = InterventionSpec.model_validate({"vector": vector.name, "layers": [2], **item})
    assert direction_of(await planned(engine, vector, spec)) == direction


@pytest.mark.parametrize("agreeing", [{SAMPLES, MORE_SAMPLES}, {MORE_SAMPLES}, set[int]()])
async def test_seeds_that_disagree_are_judged_once_more_with_more_answers(agreeing: set[int]) -> None:
    async def judge(samples: int) -> dict[str, object]:
        return {"samples": samples, "seeds_agree": samples in agreeing}

    counted = await until_agreed(judge)
    assert counted["samples"] == (SAMPLES if SAMPLES in agreeing else MORE_SAMPLES)
