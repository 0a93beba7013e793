"""Passes over given segments, without a model: what steers them is called with residuals of the test's own."""

from collections.abc import Sequence

import torch

from steering.injection.injector import Injection, Injector
from steering.injection.rows import Segment, SteeredRow
from steering.model.info import ModelInfo
from steering.plan.types import SteeringPlan
from steering.shapes import Tensor

INFO = ModelInfo("tiny", "Llama", "f" * 64, 16, 3, 100, 256, "float32", "cpu", 1000, True)


def row_of(plan: SteeringPlan, prompt: int, answer: int) -> SteeredRow:
    """A request whose prompt and answer have that many tokens."""
    return SteeredRow(ids=[0] * (prompt + answer), prompt_length=prompt, plan=plan)


def begun(
    injector: Injector, work: Sequence[tuple[SteeredRow, int]]
) -> tuple[Injection, tuple[Segment[SteeredRow], ...], Tensor]:
    """Prepares a pass over the next `count` positions of each row: what steers it, its segments and positions."""
    segments: list[Segment[SteeredRow]] = []
    positions: list[int] = []
    for row, count in work:
        segments.append(Segment(row, row.computed, len(positions), len(positions) + count))
        positions += range(row.computed, row.computed + count)
    injection = injector.prepare(segments, len(positions))
    injection.begin(torch.tensor(positions))
    return injection, tuple(segments), torch.tensor(positions)
