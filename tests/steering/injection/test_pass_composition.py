"""How positions are grouped into passes changes nothing: prompts cut anywhere, decode tokens and prompts in one pass."""

import random
from dataclasses import dataclass, field

import pytest
import torch

from steering.injection.injector import Injector
from steering.injection.rows import SteeredRow, SteeringReport
from steering.injection.slots import Slots
from steering.plan.types import DoseGuard, SteeringPlan
from tests.plans import plan_for, random_items, vectors_for
from tests.steering.injection.passes import INFO, begun, row_of

CPU = torch.device("cpu")
REQUESTS, ANSWER = 6, 5


@dataclass
class Rows:
    """Requests, and the residuals that arrive at each (layer, position): the same however they are computed."""

    rows: list[SteeredRow]
    arriving: list[torch.Tensor]
    leaving: list[torch.Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.leaving = [torch.zeros_like(one) for one in self.arriving]


def rows_of(seed: int, plans: list[SteeringPlan]) -> Rows:
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    lengths = [rng.randint(1, 40) for _ in plans]
    residuals = [
        torch.randn(INFO.layer_count, length + ANSWER, INFO.d_model, generator=generator) for length in lengths
    ]
    rows = [row_of(plan, length, ANSWER) for length, plan in zip(lengths, plans, strict=True)]
    return Rows(rows, [3.0 * one for one in residuals])


def compute(injector: Injector, all_rows: Rows, work: list[tuple[SteeredRow, int]]) -> None:
    """One pass over the next positions of some requests."""
    injection, segments, _ = begun(injector, work)
    numbers = [all_rows.rows.index(segment.row) for segment in segments]
    for layer in range(INFO.layer_count):
        pieces = [
            all_rows.arriving[n][layer, s.first : s.first + s.length] for n, s in zip(numbers, segments, strict=True)
        ]
        residual = torch.cat(pieces)
        left = injection.apply(layer, residual) if layer in injection.layers else residual
        for number, segment in zip(numbers, segments, strict=True):
            end = segment.first + segment.length
            all_rows.leaving[number][layer, segment.first : end] = left[segment.start : segment.end]
    injection.finish()
    for row, count in work:
        row.computed += count


def one_by_one(rows: Rows) -> list[SteeringReport]:
    """Each request alone: its whole prompt, then token by token."""
    reports = []
    for row in rows.rows:
        injector = Injector(Slots(INFO.layer_count, INFO.d_model, CPU))
        injector.admit(row)
        compute(injector, rows, [(row, row.prompt_length)])
        for _ in range(ANSWER):
            compute(injector, rows, [(row, 1)])
        injector.release(row)
        reports.append(row.doses.report())
    return reports


def mixed(rows: Rows, rng: random.Random) -> list[SteeringReport]:
    """Decode tokens first, then pieces of prompts, of requests that come and go."""
    injector = Injector(Slots(INFO.layer_count, INFO.d_model, CPU))
    waiting, running = list(rows.rows), list[SteeredRow]()
    while waiting or running:
        while waiting and (not running or rng.random() < 0.5):
            running.append(waiting.pop(0))
            injector.admit(running[-1])
        decoding = [(one, 1) for one in running if one.computed >= one.prompt_length]
        prompts = [one for one in running if one.computed < one.prompt_length and rng.random() < 0.7]
        pieces = [(one, rng.randint(1, one.prompt_length - one.computed)) for one in prompts]
        if decoding or pieces:
            compute(injector, rows, [*decoding, *pieces])
        for one in [one for one in running if one.computed == len(one.ids)]:
            injector.release(one)
            running.remove(one)
    return [one.doses.report() for one in rows.rows]


@pytest.mark.parametrize("seed", range(40))
async def test_the_composition_of_passes_changes_nothing(seed: int) -> None:
    vectors = vectors_for(INFO, means=True)
    guards = [None, DoseGuard(0.3, "clamp")]
    plans = [
        await plan_for(random_items(seed * REQUESTS + n, INFO.layer_count), vectors, INFO, guards[(seed + n) % 3 == 0])
        for n in range(REQUESTS)
    ]
    apart, together = rows_of(seed, plans), rows_of(seed, plans)
    expected, found = one_by_one(apart), mixed(together, random.Random(seed))
    for one, other in zip(together.leaving, apart.leaving, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    for report, alone in zip(found, expected, strict=True):
        assert (report.fired, report.fired_at, report.clamped) == (alone.fired, alone.fired_at, alone.clamped)
        assert report.total == pytest.approx(alone.total, rel=1e-4, abs=1e-6)
        for doses, others in zip(report.doses, alone.doses, strict=True):
            assert doses == pytest.approx(others, rel=1e-4, abs=1e-6)
