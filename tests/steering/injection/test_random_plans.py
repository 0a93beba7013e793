"""Whatever the plan: residuals, doses and decisions are those of the slow reference, position by position."""

import asyncio
import random
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steering.injection.injector import Injector
from steering.injection.rows import SteeredRow
from steering.injection.slots import Slots
from steering.plan.resolve import Mandatory, RecentPlans
from steering.plan.types import DoseGuard
from steering.shapes import Residual
from steering.spec import SteeringSpec
from tests.plans import Vectors, random_items, vectors_for
from tests.reference import Reference
from tests.steering.injection.passes import INFO, begun, row_of

ANSWER, REQUESTS, BOUND = 4, 3, 0.3
CPU = torch.device("cpu")


def expected(reference: Reference, arriving: torch.Tensor, prompt: int) -> torch.Tensor:
    """What leaves each (layer, position), one position after the other."""
    reference.prompt_length, reference.ids = prompt, [0] * arriving.shape[1]
    rows = [
        torch.stack(
            [reference._position(layer, position, residual) for position, residual in enumerate(arriving[layer])]
        )
        for layer in range(INFO.layer_count)
    ]
    return torch.stack(rows)


def computed(
    injector: Injector, rows: list[SteeredRow], arriving: list[torch.Tensor], rng: random.Random
) -> list[torch.Tensor]:
    """What leaves, in passes over random pieces of all requests together."""
    leaving = [torch.zeros_like(one) for one in arriving]
    while any(row.computed < len(row.ids) for row in rows):
        work = []
        for row in rows:
            left = max(row.prompt_length - row.computed, 1)
            if row.computed < len(row.ids) and rng.random() < 0.8:
                work.append((row, rng.randint(1, left)))
        if not work:
            continue
        injection, segments, _ = begun(injector, work)
        numbers = [rows.index(segment.row) for segment in segments]
        for layer in range(INFO.layer_count):
            pairs = list(zip(numbers, segments, strict=True))
            residual: Residual = torch.cat([arriving[n][layer, s.first : s.first + s.length] for n, s in pairs])
            left_layer = injection.apply(layer, residual) if layer in injection.layers else residual
            for number, segment in pairs:
                leaving[number][layer, segment.first : segment.first + segment.length] = left_layer[
                    segment.start : segment.end
                ]
        injection.finish()
        for row, count in work:
            row.computed += count
    return leaving


@given(seed=st.integers(0, 1 << 30), bounded=st.booleans(), mandatory=st.booleans(), fused=st.booleans())
@settings(max_examples=60, deadline=None)
def test_residuals_and_doses_are_those_of_the_reference(seed: int, bounded: bool, mandatory: bool, fused: bool) -> None:
    assert_as_the_reference(seed, bounded=bounded, mandatory=mandatory, fused=fused)


def assert_as_the_reference(seed: int, *, bounded: bool, mandatory: bool, fused: bool) -> None:
    """fused: by the operator `steering::edit`."""
    rng, vectors = random.Random(seed), vectors_for(INFO, means=True)
    generator = torch.Generator().manual_seed(seed)
    guard = DoseGuard(BOUND, "clamp" if bounded else "off")
    rows, references, arriving = list[SteeredRow](), list[Reference](), list[torch.Tensor]()
    for number in range(REQUESTS):
        own = SteeringSpec.model_validate({"interventions": random_items(seed + number, INFO.layer_count)})
        last = SteeringSpec.model_validate(
            {"interventions": random_items(seed - 1 - number, INFO.layer_count, 2) if mandatory else []}
        )
        resolving = RecentPlans().resolve(own, Vectors(vectors), INFO, guard, Mandatory(last, vectors))
        prompt = rng.randint(1, 24)
        rows.append(row_of(asyncio.run(resolving), prompt, ANSWER))
        whole = SteeringSpec(interventions=(*own.interventions, *last.interventions))
        blocks = cast(torch.nn.ModuleList, [None] * INFO.layer_count)
        reference = Reference(cast(torch.nn.Module, None), blocks, whole, vectors, mandatory=len(last.interventions))
        reference.bound = BOUND if bounded else reference.bound
        references.append(reference)
        arriving.append(3.0 * torch.randn(INFO.layer_count, prompt + ANSWER, INFO.d_model, generator=generator))
    injector = Injector(Slots(INFO.layer_count, INFO.d_model, CPU))
    injector.slots.fused = fused
    for row in rows:
        injector.admit(row)
    leaving = computed(injector, rows, arriving, rng)
    for row, reference, before, after in zip(rows, references, arriving, leaving, strict=True):
        injector.release(row)
        torch.testing.assert_close(after, expected(reference, before, row.prompt_length), rtol=1e-3, atol=1e-3)
        report = row.doses.report()
        for number, doses in enumerate(report.doses):
            theirs = {layer: found for (index, layer), found in reference.doses.items() if index == number}
            assert doses == pytest.approx(
                {at: sum(found) / len(found) for at, found in theirs.items()}, rel=1e-2, abs=1e-4
            )
            assert report.tokens[number] == max(map(len, theirs.values()), default=0)
            assert report.fired[number] == bool(theirs)
        assert (report.clamped > 0) <= bounded
