"""The dose that is planned before anything runs, and what the guard does about it."""

from itertools import combinations
from typing import Any

import pytest
import torch

from steering.errors import DoseExceeded
from steering.plan.dose import TOGETHER
from steering.plan.resolve import Mandatory, RecentPlans
from steering.plan.types import DoseGuard, SteeringPlan
from steering.spec import SteeringSpec
from tests.plans import Vectors, vectors_for
from tests.steering.plan.planning import INFO, plan_of


async def test_the_dose_guard_judges_the_sum_over_the_layers() -> None:
    item = {"vector": "alpha", "strength": 10.0, "layers": [0, 3]}
    warned = await plan_of(item, guard=DoseGuard(1.0))
    assert len(warned.warnings) == 1
    assert "2 layers from 0 to 3 together is 3.75" in warned.warnings[0]
    assert warned.interventions[0].planned_dose == pytest.approx({0: 3.0, 3: 0.75})
    assert warned.dose_bound is None
    clamped = await plan_of(item, guard=DoseGuard(0.5, "clamp"))
    assert len(clamped.warnings) == 1
    assert clamped.dose_bound == 0.5
    assert clamped.fingerprint != warned.fingerprint
    assert clamped.prompt_fingerprint != warned.prompt_fingerprint
    with pytest.raises(DoseExceeded, match="beyond the bound"):
        await plan_of(item, guard=DoseGuard(0.5, "refuse"))
    assert (await plan_of(item, guard=DoseGuard(4.0, "refuse"))).dose_bound == 4.0
    assert (await plan_of(item, guard=DoseGuard(0.5, "off"))).warnings == ()
    allowed = await plan_of(item, guard=DoseGuard(4.0, "refuse", warned=1.0))
    assert (allowed.dose_bound, allowed.warnings) == (4.0, warned.warnings)


ALWAYS = {"vector": "beta", "score": "cosine", "above": -1.5, "layer": 0, "at": "token"}


@pytest.mark.parametrize(
    "items",
    [
        [{"strength": 10.0, "scope": {"tokens": "generated", "start": 0}}],
        [{"strength": 10.0, "scope": {"tokens": "prompt", "start": 0}}],
        [{"strength": 10.0, "scope": {"tokens": "last"}}],
        [{"strength": 10.0, "when": ALWAYS}],
        [{"strength": 10.0, "schedule": {"kind": "linear", "to": 1.0, "tokens": 1}}],
        [{"strength": 0.1, "schedule": {"kind": "linear", "to": 100.0, "tokens": 1}}],
        [{"strength": 0.1, "schedule": {"kind": "cosine", "to": -100.0, "tokens": 1}}],
        [{"strength": 10.0, "unit": "relative"}],
        [{"operation": "rotate", "degrees": 180.0}],
        [{"operation": "ablate", "strength": 1e-9}, {"strength": 10.0}],
        [{"strength": 1.0, "layers": "all"}],
    ],
)
async def test_a_refusing_guard_knows_every_planned_dose(items: list[dict[str, Any]]) -> None:
    items = [{"vector": "alpha", "layers": [1], **item} for item in items]
    with pytest.raises(DoseExceeded, match=r"beyond the bound of 0\.2"):
        await plan_of(*items, guard=DoseGuard(0.2, "refuse"))
    assert (await plan_of(*items, guard=DoseGuard(0.2, "clamp"))).dose_bound == 0.2


async def test_constant_changes_that_cancel_have_no_planned_dose() -> None:
    opposite = [{"vector": "alpha", "layers": [1], "strength": strength} for strength in (10.0, -10.0)]
    guard = DoseGuard(0.2, "refuse")
    assert (await plan_of(*opposite, guard=guard)).warnings == ()
    behind = {"vector": "beta", "operation": "ablate", "layers": [1], "strength": 0.1}
    assert (await plan_of(behind, *opposite, guard=guard)).warnings == ()
    either = [{**one, "strength": 1.0, "when": ALWAYS} for one in opposite]
    assert (await plan_of(*either, guard=guard)).warnings == (), "which of the two holds is not known"


@pytest.mark.parametrize(
    ("scopes", "cancels"),
    [
        (({"tokens": "generated", "end": 10}, {"tokens": "generated", "start": 10, "end": 20}), False),
        (({"token_ids": [1]}, {"token_ids": [2]}), False),
        (({"roles": ["user"]}, {"roles": ["assistant"]}), False),
        (({"phase": ["thinking"]}, {"phase": ["answer"]}), False),
        (({"tokens": "prompt", "end": 1}, {"tokens": "generated", "end": 1}), False),
        (({"tokens": "generated", "end": 10}, {"tokens": "generated", "start": 0, "end": 10}), True),
        (({"token_ids": [1]}, {"token_ids": [1]}), True),
        (({"tokens": "last"}, {"tokens": "last"}), True),
    ],
)
async def test_changes_cancel_at_the_same_positions_only(scopes: tuple[dict[str, Any], ...], cancels: bool) -> None:
    strengths = (10.0, -10.0)
    items = [
        {"vector": "alpha", "layers": [1], "strength": strength, "scope": scope}
        for strength, scope in zip(strengths, scopes, strict=True)
    ]
    for guard in (DoseGuard(0.2, "warn"), DoseGuard(0.2, "clamp")):
        assert (not (await plan_of(*items, guard=guard)).warnings) == cancels


@pytest.mark.parametrize("tokens", [(None, 10), (10, 10), (10, 10, 10), tuple(range(1, TOGETHER + 4))])
async def test_changes_that_may_meet_count_as_the_longest_sum_of_some_of_them(tokens: tuple[int | None, ...]) -> None:
    """Of windows that may meet, and of nearly orthogonal directions: their lengths together would be refused."""
    names = [("alpha", "beta", "gamma")[number % 3] for number in range(len(tokens))]
    items = [
        {"vector": name, "layers": [1], "scope": {"tokens": "generated", "start": number, "end": end and end + number}}
        for number, (name, end) in enumerate(zip(names, tokens, strict=True))
    ]
    found = vectors_for(INFO)
    changes = [found[name].layers[1].scale * found[name].layers[1].direction / INFO.typical_norms[1] for name in names]
    some = [one for count in range(1, len(changes) + 1) for one in combinations(changes, count)]
    longest = max(float(torch.stack(one).sum(0).norm()) for one in some)
    assert sum(map(torch.linalg.vector_norm, changes)) > 1.05 * longest
    if len(tokens) <= TOGETHER:
        await plan_of(*items, guard=DoseGuard(1.01 * longest, "refuse"))
    with pytest.raises(DoseExceeded):
        await plan_of(*items, guard=DoseGuard(0.99 * longest, "refuse"))


async def test_a_change_in_two_scopes_cancels_where_both_act_everywhere() -> None:
    for first, second in (("all", "generated"), ("all", "prompt")):
        items = [
            {"vector": "alpha", "layers": [1], "strength": strength, "scope": {"tokens": tokens}}
            for strength, tokens in ((0.1, first), (-0.1, second))
        ]
        (own, _) = (await plan_of(*items)).interventions
        dose = own.planned_dose[1]
        assert (await plan_of(*items, guard=DoseGuard(1.01 * dose, "refuse"))).warnings == ()


@pytest.mark.parametrize("own_dose", [0.001, 0.0])
async def test_what_is_mandatory_is_no_part_of_the_planned_dose_of_a_request(own_dose: float) -> None:
    def add(strength: float) -> dict[str, Any]:
        return {"vector": "alpha", "layers": [1], "unit": "relative", "strength": strength}

    async def planned(own: list[dict[str, Any]], mandatory: dict[str, Any]) -> SteeringPlan:
        specs = [SteeringSpec.model_validate({"interventions": items}) for items in (own, [mandatory])]
        vectors, guard = vectors_for(INFO), DoseGuard(0.2, "refuse")
        return await RecentPlans(1).resolve(specs[0], Vectors(vectors), INFO, guard, Mandatory(specs[1], vectors))

    assert (await planned([add(own_dose)], add(0.5))).warnings == ()
    (warning,) = (await planned([], add(0.5))).warnings
    assert "is 0.50" in warning
    plain = {"vector": "alpha", "layers": [1]}
    with pytest.raises(DoseExceeded):
        await planned([{**plain, "strength": 10.0}], {**plain, "strength": -10.0})


async def test_by_default_it_warns_beyond_the_measured_bound() -> None:
    for strength, warnings in ((0.6, 0), (0.7, 1)):  # at layer 0 a strength of 1 plans a relative dose of 0.3
        plan = await plan_of({"vector": "alpha", "strength": strength, "layers": [0]})
        assert len(plan.warnings) == warnings
