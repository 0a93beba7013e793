"""What steering did at prompt positions, summed by shared block: kept beside a block's keys and values, and lent with them."""

from collections.abc import Iterator

import torch

from steering.engine.transformers.batch import Batch
from steering.engine.transformers.sequence import NEVER, OPENING, Sequence
from steering.plan.program import acts_on_prompt, opens_prompt
from steering.plan.types import SteeringPlan
from steering.shapes import Float, Tensor

BLOCK = 16
"""Positions a block holds; a prefix is shared in whole blocks."""
REST = -1
"""Stands for the positions of no shared block: the last of the prompt, and everything behind it."""


def shares(sequence: Sequence) -> bool:
    """Whether keys and values of its prompt may come from, and serve, others."""
    return sequence.capture is None and sequence.plan.reusable


def block_runs(sequence: Sequence, first: int, end: int) -> Iterator[tuple[int, int]]:
    """Positions [first, end) cut where they are measured apart: (shared block or REST, how many), in order."""
    measured = sequence.plan.prompt_fingerprint and shares(sequence)
    behind = min(end, sequence.prompt_length - 1) if measured else first
    while first < behind:
        stop = min(first // BLOCK * BLOCK + BLOCK, behind)
        yield first // BLOCK, stop - first
        first = stop
    if first < end:
        yield REST, end - first


def places(plan: SteeringPlan) -> tuple[tuple[int, int], ...]:
    """(layer, stage) of all that acts on prompt positions before the last. Plans of one prompt fingerprint have as many, in
    one order, though a stage may be numbered differently in each."""
    found: list[tuple[int, int]] = []
    for layer, program in sorted(plan.layers.items()):
        if opens_prompt(program):
            found.append((layer, OPENING))
        found += [(layer, n) for n, step in enumerate(program.steps) if acts_on_prompt(step, plan.thresholds)]
    return tuple(found)


def measures_of(sequence: Sequence, block: int) -> Float[Tensor, "place 2"]:
    """Sums over one block: of doses (of 1 / |r| for the opening adds), and of the tokens acted on. float64, on the host."""
    sums = [sequence.block_report(block, *place) for place in places(sequence.plan)]
    return torch.tensor([[one.dose, one.tokens] for one in sums], dtype=torch.float64).reshape(-1, 2)


def restore_measures(sequence: Sequence, block: int, measures: Float[Tensor, "place 2"]) -> None:
    """The sequence reports what was measured when the block was computed, as if it had computed it."""
    for place, (dose, tokens) in zip(places(sequence.plan), measures.tolist(), strict=True):
        fired_at = -1 if tokens else NEVER
        sequence.report(*place).add(dose, tokens, fired_at)
        sequence.block_report(block, *place).add(dose, tokens, fired_at)
    sequence.phase_tokens[0] += BLOCK


class OpeningBlocks:
    """Sums of 1 / |r| by shared block, as the opening adds of one packed pass met it."""

    def __init__(self, batch: Batch, device: torch.device) -> None:
        self._owners: list[tuple[Sequence, int]] = []
        tokens: list[int] = []
        spread: list[int] = []
        for segment in batch.segments:
            token = segment.start
            for block, count in block_runs(segment.sequence, segment.first, segment.last_position + 1):
                if block != REST:
                    tokens += range(token, token + count)
                    spread += [len(self._owners)] * count
                    self._owners.append((segment.sequence, block))
                token += count
        self._tokens, self._spread = torch.tensor(tokens, device=device), torch.tensor(spread, device=device)
        self._sums: dict[int, Tensor] = {}

    def note(self, layer: int, inverse: Float[Tensor, "token"]) -> None:
        """1 / |r| of every token, as it arrived at the layer."""
        if self._owners:
            sums = inverse.new_zeros(len(self._owners))
            self._sums[layer] = sums.index_add_(0, self._spread, inverse.index_select(0, self._tokens))

    def collect(self) -> None:
        """Hands the sums to the sequences."""
        for layer, sums in self._sums.items():
            for (sequence, block), total in zip(self._owners, sums.tolist(), strict=True):
                sequence.block_report(block, layer, OPENING).dose += total
        self._sums.clear()
