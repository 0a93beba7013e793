"""An operation and a condition are one class and one line in a table: resolver, guard and engine need no change for them."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from steering.conditions import CONDITIONS, Condition
from steering.engine.api import GenerationRequest
from steering.errors import DoseExceeded, InvalidRequest
from steering.model.layout import find_layout
from steering.operations import OPERATIONS, Edit, Operation
from steering.plan.types import DoseGuard
from steering.shapes import Parameters, Residual, Scores
from steering.spec import InterventionSpec, SteeringSpec, Threshold
from steering.vectors import LayerDirection
from tests.engines import family_engine, run_all, sampling
from tests.families import FAMILIES
from tests.plans import plan_for, vectors_for
from tests.reference import Reference
from tests.reference_steps import middle, passes

PROMPT = tuple(b"The answer to that is")


class Mirror(Operation):
    """r' = r - 2 t (r . d) d: the reflection across the plane that d is normal to."""

    @staticmethod
    def edits(spec: InterventionSpec, entry: LayerDirection, other: LayerDirection | None) -> tuple[Edit, ...]:
        return (Edit(entry.direction, -entry.direction, weight=2.0 * spec.strength),)


class Shift(Operation):
    """r' = r + a (1, 1, ..., 1) / sqrt(d_model) + a d: a constant that is no add, along a vector that is not unit."""

    fields: ClassVar[frozenset[str]] = frozenset({"degrees"})
    has_unit: ClassVar[bool] = True

    @staticmethod
    def edits(spec: InterventionSpec, entry: LayerDirection, other: LayerDirection | None) -> tuple[Edit, ...]:
        return (Edit(entry.direction + len(entry.direction) ** -0.5, bias=spec.strength * entry.scale),)


class Attract(Operation):
    """r' = r + t max(0, 1 - r . d) d + t max(0, 1 - r . e) e, e = d with its halves exchanged: two edits of one intervention."""

    @staticmethod
    def edits(spec: InterventionSpec, entry: LayerDirection, other: LayerDirection | None) -> tuple[Edit, ...]:
        turned = entry.direction.roll(len(entry.direction) // 2)
        return tuple(Edit(one, -one, 1.0, weight=spec.strength, kind="relu") for one in (entry.direction, turned))


class Midpoint(Condition):
    """score = r . c - m, m the middle of the class means: positive on the side of the positive pole."""

    parameters: ClassVar[tuple[str, ...]] = ("positive_mean", "negative_mean")

    @staticmethod
    def score(residual: Residual, direction: Residual, parameters: Parameters) -> Scores:
        return (residual * direction).sum(-1) - parameters.mean(dim=1)


class SlowReference(Reference):
    """Knows the samples too, in formulas of its own."""

    def _apply(self, group: list[InterventionSpec], layer: int, r: torch.Tensor, weight: float) -> torch.Tensor:
        item = group[0]
        entry = self.vectors[item.vector].layers[layer]
        if item.operation == "mirror":
            across = r - (r @ entry.direction) * entry.direction
            return r - 2.0 * item.strength * weight * (r - across)
        if item.operation == "attract":
            directions = (entry.direction, entry.direction.roll(len(r) // 2))
            return r + sum(item.strength * weight * max(0.0, 1.0 - float(r @ one)) * one for one in directions)
        if item.operation == "shift":
            ones = torch.ones(len(r)) / float(len(r) ** 0.5)
            return r + item.strength * weight * entry.scale * (entry.direction + ones)
        return super()._apply(group, layer, r, weight)

    def _decide(self, threshold: Threshold, position: int, residual: torch.Tensor) -> None:
        if threshold.score != "midpoint":
            super()._decide(threshold, position, residual)
            return
        entry = self.vectors[threshold.vector].layers[self._condition_layer(threshold)]
        score = float(residual @ entry.direction) - middle(entry)
        self.decided.setdefault(threshold, {})[position] = passes(threshold, score, before=False)


@pytest.fixture
def registered() -> Iterator[None]:
    OPERATIONS.register("mirror", lambda: Mirror)
    OPERATIONS.register("shift", lambda: Shift)
    OPERATIONS.register("attract", lambda: Attract)
    CONDITIONS.register("midpoint", lambda: Midpoint)
    yield
    OPERATIONS.unregister("mirror")
    OPERATIONS.unregister("shift")
    OPERATIONS.unregister("attract")
    CONDITIONS.unregister("midpoint")


WHEN = {"vector": "beta", "score": "midpoint", "above": 0.0, "at": "token", "layer": 0}
CASES: list[list[dict[str, Any]]] = [
    [{"vector": "alpha", "operation": "mirror", "layers": "all"}],
    [{"vector": "alpha", "operation": "mirror", "layers": [1], "scope": {"tokens": "generated"}, "strength": 0.7}],
    [{"vector": "alpha", "operation": "mirror", "layers": [1], "schedule": {"kind": "linear", "tokens": 4}}],
    [{"vector": "alpha", "operation": "shift", "layers": "all", "strength": 0.5}],
    [{"vector": "alpha", "operation": "shift", "layers": [0], "scope": {"tokens": "prompt"}}, {"vector": "beta"}],
    [
        {"vector": "alpha", "operation": "mirror", "layers": [1]},
        {"vector": "gamma", "operation": "shift", "layers": [1]},
    ],
    [{"vector": "alpha", "operation": "attract", "layers": [0, 1]}, {"vector": "beta", "operation": "mirror"}],
    [{"vector": "alpha", "strength": 2.0, "layers": [1], "when": WHEN}],
    [{"vector": "alpha", "operation": "mirror", "layers": [1, 2], "when": WHEN}],
]


@pytest.mark.usefixtures("registered")
async def test_the_engine_agrees_with_a_slow_reference(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    model = FAMILIES["llama"]()
    blocks = find_layout(model).blocks
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        vectors = vectors_for(engine.info, means=True)
        plans = [await plan_for(items, vectors, engine.info) for items in CASES]
        outcomes = await run_all(engine, [GenerationRequest(PROMPT, sampling(8), plan) for plan in plans])
    for items, outcome in zip(CASES, outcomes, strict=True):
        spec = SteeringSpec.model_validate({"interventions": items})
        assert outcome.tokens == SlowReference(model, blocks, spec, vectors).generate(PROMPT, 8), items
        assert all(dose > 0.0 for doses in outcome.finish.steering.doses for dose in doses.values())


@pytest.mark.usefixtures("registered")
async def test_the_resolver_and_the_guard_know_what_they_state(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        info, vectors = engine.info, vectors_for(engine.info)
    with pytest.raises(InvalidRequest, match="'mirror' takes no degrees"):
        await plan_for([{"vector": "alpha", "operation": "mirror", "degrees": 3.0}], vectors, info)
    with pytest.raises(
        InvalidRequest, match=r"needs positive_mean and negative_mean, which vector beta@1 does not have"
    ):
        await plan_for([{"vector": "alpha", "when": WHEN}], vectors, info)
    strong = {"vector": "alpha", "operation": "shift", "strength": 1e6}
    measured = replace(info, typical_norms=(10.0,) * info.layer_count)
    with pytest.raises(DoseExceeded):
        await plan_for([strong], vectors, measured, DoseGuard(0.2, "refuse"))
    assert (await plan_for([strong], vectors, info)).interventions[0].spec.operation == "shift"


def test_what_was_not_registered_is_not_removed() -> None:
    with pytest.raises(InvalidRequest, match="unknown operation 'add'"):
        OPERATIONS.unregister("add")
    assert "add" in OPERATIONS
