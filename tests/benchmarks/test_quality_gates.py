"""A report judges the operating point that a user gets: the largest measured strength, or one planned dose."""

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.quality.reports.gates import DOSE, level_of, operating_strength, until_agreed
from steering.cards import Recommended
from steering.lab.controls import planned
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
    ("item", "level"),
    [({"strength": -1.5}, -1.5), ({"operation": "clamp", "low": -0.7, "high": -0.7}, -0.7)],
)
async def test_the_level_of_a_plan_is_its_strength_or_what_it_sets(item: dict[str, Any], level: float) -> None:
    engine = LinearEngine()
    vector = replace(planted_vector(engine), version=1)
    spec = InterventionSpec.model_validate({"vector": vector.name, "layers": [2], **item})
    assert level_of(await planned(engine.info, vector, spec)) == level


@pytest.mark.parametrize(
    ("samples", "agreeing", "judged"),
    [((4, 12), {4, 12}, [4]), ((4, 12), {12}, [4, 12]), ((4, 12), set[int](), [4, 12]), ((12,), set[int](), [12])],
)
async def test_seeds_that_disagree_are_judged_once_more_with_more_answers(
    samples: tuple[int, ...], agreeing: set[int], judged: list[int]
) -> None:
    seen: list[int] = []

    async def judge(count: int) -> dict[str, object]:
        seen.append(count)
        return {"samples": count, "seeds_agree": count in agreeing}

    assert (await until_agreed(judge, samples))["samples"] == judged[-1]
    assert seen == judged
