"""Mandatory interventions act in full after the dose guard has bounded what a request adds."""

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from steering.engine.api import GenerationRequest
from steering.injection.readings import Reading
from steering.plan.resolve import Mandatory, RecentPlans
from steering.plan.types import DoseGuard, SteeringPlan
from steering.spec import SteeringSpec
from steering.vectors import ConceptVector
from tests.engines import Outcome, family_engine, run_all, sampling
from tests.plans import Vectors, vectors_for

PROMPT = tuple(b"The answer to that is")
GUARD = DoseGuard(0.05, "clamp")
PUSH = {"vector": "alpha", "strength": -2.0, "layers": [1]}
ABLATE = {"vector": "beta", "operation": "ablate", "layers": [1]}
FLOOR = {"vector": "alpha", "operation": "clamp", "low": 0.5, "layers": [1]}
LIFT = {"vector": "alpha", "strength": 1.0, "layers": [1]}


def spec(*items: dict[str, object]) -> SteeringSpec:
    """A spec of these interventions."""
    return SteeringSpec.model_validate({"interventions": items})


def lowest(outcome: Outcome) -> float:
    """The lowest readout of an answer."""
    return min(event.readout["alpha"] for event in outcome.events if event.finish is None)


@pytest.mark.parametrize("own", [(PUSH,), (ABLATE, PUSH), ({**PUSH, "when": {"vector": "beta", "above": -99}},)])
async def test_the_guard_weakens_what_a_request_adds_and_not_what_is_mandatory(
    own: tuple[dict[str, object], ...], hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        vectors = vectors_for(engine.info, means=True)
        entry = vectors["alpha"].at(1)
        reading = Reading("alpha", 1, entry.direction, entry.scale, entry.middle)

        async def plan(mandatory: SteeringSpec, *items: dict[str, object]) -> SteeringPlan:
            held: dict[str, ConceptVector] = {one.vector: vectors[one.vector] for one in mandatory.interventions}
            given = Mandatory(mandatory, held)
            return await RecentPlans().resolve(spec(*items), Vectors(vectors), engine.info, GUARD, given)

        floor, without, lift, alone = (
            await plan(spec(FLOOR), *own),
            await plan(spec(), *own),
            await plan(spec(LIFT), *own),
            await plan(spec(LIFT)),
        )
        plans = (floor, without, lift, alone)
        requests = [GenerationRequest(PROMPT, sampling(8), one, (reading,)) for one in plans]
        outcomes = await run_all(engine, requests)
        again = await run_all(engine, [requests[2], requests[0]])
    assert lowest(outcomes[0]) >= 0.5 - 1e-4
    assert lowest(outcomes[1]) < 0.4
    for outcome in outcomes[:3]:
        assert outcome.finish.steering.clamped > 0
    assert [one.tokens for one in again] == [outcomes[2].tokens, outcomes[0].tokens], "also in another batch"
    (dose,) = outcomes[2].finish.steering.doses[-1].values()
    (planned,) = outcomes[3].finish.steering.doses[0].values()
    assert dose > 3 * GUARD.bound, "not scaled down"
    assert dose == pytest.approx(planned, rel=0.5)
    assert outcomes[3].finish.steering.clamped == 0
    assert (floor.own, floor.mandatory) == (len(own), 1)


async def test_a_name_of_a_request_and_of_the_operator_may_be_two_vectors(
    hf_byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        theirs, ours = vectors_for(engine.info, seed=1), vectors_for(engine.info, seed=2)
        mandatory = Mandatory(spec(LIFT), {"alpha": ours["alpha"]})
        plan = await RecentPlans().resolve(spec(PUSH), Vectors(theirs), engine.info, DoseGuard(), mandatory)
    own, added = plan.interventions
    assert own.spec.vector == added.spec.vector == "alpha@1"
    first, last = plan.layers[1]
    assert (first.mandatory, last.mandatory) == (False, True)
    for edits, vectors in ((first, theirs), (last, ours)):
        torch.testing.assert_close(edits.write, vectors["alpha"].at(1).direction[None])
