"""How positions are grouped into passes changes nothing: prompts cut anywhere, decode tokens and prompts in one pass."""

import asyncio
import random
from dataclasses import dataclass, field

import pytest
import torch

from steering.engine.api import SamplingParams, SteeringReport
from steering.engine.transformers.sequence import Sequence, Stream
from steering.engine.transformers.steering.steering_batch import SteeringRunner
from steering.model.info import ModelInfo
from steering.plan.dose import DoseGuard
from steering.plan.types import SteeringPlan
from tests.plans import plan_for, random_items, vectors_for
from tests.steering.engine.steering.passes import pass_over

INFO = ModelInfo("tiny", "Llama", "f" * 64, 16, 3, 100, 256, "float32", "cpu", 1000, True)
CPU = torch.device("cpu")
REQUESTS, ANSWER = 6, 5


@dataclass
class Rows:
    """Requests, and the residuals that arrive at each (layer, position): the same however they are computed."""

    sequences: list[Sequence]
    arriving: list[torch.Tensor]
    leaving: list[torch.Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.leaving = [torch.zeros_like(one) for one in self.arriving]


def rows_of(seed: int, plans: list[SteeringPlan]) -> Rows:
    rng, loop = random.Random(seed), asyncio.get_running_loop()
    generator = torch.Generator().manual_seed(seed)
    lengths = [rng.randint(1, 40) for _ in plans]
    sequences = [
        Sequence(n, [0] * (length + ANSWER), length, plan, SamplingParams(), Stream(loop))
        for n, (length, plan) in enumerate(zip(lengths, plans, strict=True))
    ]
    residuals = [
        torch.randn(INFO.layer_count, length + ANSWER, INFO.d_model, generator=generator) for length in lengths
    ]
    return Rows(sequences, [3.0 * one for one in residuals])


def compute(runner: SteeringRunner, rows: Rows, work: list[tuple[Sequence, int]]) -> None:
    """One pass over the next positions of some requests."""
    batch = pass_over(work)
    steering = runner.prepare(batch)
    steering.begin()
    for layer in range(INFO.layer_count):
        pieces = [rows.arriving[s.sequence.id][layer, s.first : s.first + s.length] for s in batch.segments]
        residual = torch.cat(pieces)
        left = steering.apply(layer, residual, batch) if layer in steering.layers else residual
        for segment in batch.segments:
            end = segment.first + segment.length
            rows.leaving[segment.sequence.id][layer, segment.first : end] = left[segment.start : segment.end]
    runner.finish(steering)
    for sequence, count in work:
        sequence.computed += count


def one_by_one(rows: Rows) -> list[SteeringReport]:
    """Each request alone: its whole prompt, then token by token."""
    reports = []
    for sequence in rows.sequences:
        runner = SteeringRunner(INFO.layer_count, INFO.d_model, CPU)
        runner.admit(sequence)
        compute(runner, rows, [(sequence, sequence.prompt_length)])
        for _ in range(ANSWER):
            compute(runner, rows, [(sequence, 1)])
        runner.release(sequence)
        reports.append(sequence.dose.report())
    return reports


def mixed(rows: Rows, rng: random.Random) -> list[SteeringReport]:
    """Decode tokens first, then pieces of prompts, of requests that come and go."""
    runner = SteeringRunner(INFO.layer_count, INFO.d_model, CPU)
    reports: dict[int, SteeringReport] = {}
    waiting, running = list(rows.sequences), list[Sequence]()
    while waiting or running:
        while waiting and (not running or rng.random() < 0.5):
            running.append(waiting.pop(0))
            runner.admit(running[-1])
        decoding = [(one, 1) for one in running if one.computed >= one.prompt_length]
        prompts = [one for one in running if one.computed < one.prompt_length and rng.random() < 0.7]
        pieces = [(one, rng.randint(1, one.prompt_length - one.computed)) for one in prompts]
        if decoding or pieces:
            compute(runner, rows, [*decoding, *pieces])
        for one in [one for one in running if one.computed == len(one.ids)]:
            runner.release(one)
            running.remove(one)
            reports[one.id] = one.dose.report()
    return [reports[one.id] for one in rows.sequences]


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
