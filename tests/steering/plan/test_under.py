"""A plan that was resolved under one policy and runs under another, as that of a job whose policy changes meanwhile."""

from collections.abc import Sequence
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from steering.engine.api import CapturePrompt, CaptureSpec, GenerationRequest
from steering.errors import LimitExceeded
from steering.model.info import ModelInfo
from steering.plan.resolve import Mandatory, RecentPlans, under
from steering.plan.types import DoseGuard, SteeringPlan
from steering.spec import SteeringSpec
from tests.engines import family_engine, run, sampling
from tests.plans import Vectors, vectors_for
from tests.steering.plan.planning import INFO

Items = Sequence[dict[str, Any]]
ADD: dict[str, Any] = {"vector": "alpha", "strength": 0.5, "layers": [1], "scope": {"tokens": "generated"}}
HELD: dict[str, Any] = {**ADD, "layers": "all", "hold": {"score": 0.2}}


def when(*bounds: float) -> dict[str, Any]:
    """An add under a condition of so many thresholds."""
    return {**ADD, "when": {"any": [{"vector": "beta", "above": bound, "layer": 0} for bound in bounds]}}


async def resolved(own: Items, mandatory: Items, info: ModelInfo = INFO) -> SteeringPlan:
    """Resolves interventions of a request, followed by those of an operator."""
    given, added = (SteeringSpec.model_validate({"interventions": list(items)}) for items in (own, mandatory))
    vectors = vectors_for(info)
    guard = DoseGuard(action="off")
    policy = Mandatory(added, {name: vectors[name] for name in ("alpha", "beta")} if mandatory else {})
    return await RecentPlans(1).resolve(given, Vectors(vectors), info, guard, policy)


async def test_the_thresholds_of_the_former_policy_go_with_it() -> None:
    first, second = when(1.0, 2.0), when(1.0, 5.0)
    plan = await resolved([when(0.0, 1.0)], [first])
    assert [one.bound for one in plan.thresholds] == [0.0, 1.0, 1.0, 2.0]
    joined = under(plan, await resolved([], [second]), INFO.fingerprint)
    assert [one.bound for one in joined.thresholds] == [0.0, 1.0, 1.0, 5.0]
    bounds = [
        [joined.thresholds[leaf].bound for leaf in sorted(one.condition.leaves())]
        for one in joined.interventions
        if one.condition is not None
    ]
    assert bounds == [[0.0, 1.0], [1.0, 5.0]]
    free = under(plan, await resolved([], []), INFO.fingerprint)
    assert [one.bound for one in free.thresholds] == [0.0, 1.0]


@pytest.mark.parametrize(
    ("own", "mandatory"),
    [
        ([when(*range(at, at + 8)) for at in range(0, 40, 8)], [when(*range(at, at + 8)) for at in range(40, 72, 8)]),
        ([HELD] * 12, [HELD] * 12),
    ],
    ids=["thresholds", "holds"],
)
async def test_a_plan_that_a_policy_makes_too_wide_is_refused(
    own: Items, mandatory: Items, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    """In tables of the engine it would have no room, and its pass would fail for all."""
    prompt = tuple(b"Once upon a time")
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        info = engine.info
        plan, policy = await resolved(own, [], info), await resolved([], mandatory, info)
        wide = under(plan, policy, info.fingerprint)
        with pytest.raises(LimitExceeded, match="with what an operator makes mandatory; at most 64"):
            await run(engine, GenerationRequest(prompt, sampling(4), wide))
        with pytest.raises(LimitExceeded, match="with what an operator makes mandatory; at most 64"):
            await engine.capture([CapturePrompt(prompt, wide, 8)], CaptureSpec((1,)))
        assert len((await run(engine, GenerationRequest(prompt, sampling(4), plan))).tokens) == 4
