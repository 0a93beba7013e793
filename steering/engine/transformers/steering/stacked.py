"""SteeringBatch: the plans of all rows stacked by layer, order and operation: prepared on the host, applied on the device."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import torch

from steering.engine.transformers.batch import Batch
from steering.engine.transformers.segment import Segment
from steering.engine.transformers.sequence import NEVER, Sequence
from steering.engine.transformers.steering.bank import SteeringBank
from steering.engine.transformers.steering.conditions import Circuit, ConditionEvaluator
from steering.engine.transformers.steering.prompt_doses import REST, OpeningBlocks, block_runs
from steering.engine.transformers.steering.timing import Timing
from steering.operations import OPERATIONS
from steering.plan.program import weight_index
from steering.plan.types import Phase, Step
from steering.shapes import Bool, Float, Int, Residual, Tensor


@dataclass(slots=True, eq=False)
class _Member:
    """One row's step inside a stacked call, and the flat rows of the pass it acts on."""

    sequence: Sequence
    layer: int
    stage: int
    step: Step
    timing: Timing
    tokens: tuple[int, ...]
    offset: int = 0
    """Flat row of position 0."""


class StackedCall:
    """One operation at one layer for many rows. Sums of dose and the first firing are kept until they are collected."""

    def __init__(self, operation: str, members: list[_Member], batch: Batch, width: int, device: torch.device) -> None:
        self._operation = OPERATIONS[operation]
        self._members = members
        self._decode = batch.decode
        spread = [index for index, member in enumerate(members) for _ in member.tokens]
        self._member = torch.tensor(spread, device=device)
        tokens = [token for member in members for token in member.tokens]
        self._tokens: Int[Tensor, token] | None = torch.tensor(tokens, device=device)
        if tokens == list(range(batch.tokens)):
            self._tokens = None
        self._directions = _padded([m.step.directions for m in members]).to(device)[self._member]
        self._parameters = torch.tensor([m.step.parameters for m in members], device=device)[self._member]
        self._lasts = torch.tensor([m.sequence.prompt_length - 1 for m in members], device=device)[self._member]
        weighted = torch.arange(len(self._operation.parameters), device=device) == weight_index(members[0].step)
        self._weighted, self._unweighted = weighted.to(torch.float32), (~weighted).to(torch.float32)
        self._relative = self._relative_mask(device)
        self._weights: Float[Tensor, token] | None = None
        decided = any(member.step.decision for member in members)
        self._circuit = Circuit([m.step.decision for m in members], spread, width, device) if decided else None
        self._parts, part = _parts(members, batch.decode)
        self._part = torch.tensor(part, device=device)
        self._dose = torch.zeros(len(self._parts), device=device)
        self._count = torch.zeros(len(self._parts), device=device)
        self._fired = torch.full((len(self._parts),), NEVER, device=device)
        self.steady = False
        """Whether every pass of this stack does the same from here on."""

    def _relative_mask(self, device: torch.device) -> Bool[Tensor, "token n"] | None:
        if not any(member.step.relative for member in self._members):
            return None
        scaled = [name in self._operation.scaled for name in self._operation.parameters]
        rows = [[member.step.relative and flag for flag in scaled] for member in self._members]
        return torch.tensor(rows, device=device)[self._member]

    def time(self, positions: list[int]) -> None:
        """Sets the weights of this pass. positions: absolute position of each flat row."""
        if self.steady:
            return
        if self._decode and all(m.timing.settled(positions[m.tokens[0]]) for m in self._members):
            self.steady, self._weights = True, None
            weights = [1.0] * len(self._members)
        else:
            weights = [m.timing.at(positions[token]) for m in self._members for token in m.tokens]
            self._weights = torch.tensor(weights, device=self._dose.device)
        flat = iter(weights)
        for member in self._members:
            acting = [t for t in member.tokens if next(flat) != 0.0]
            if acting and member.step.decision is None:
                at = _generated_index(member.sequence, positions[acting[0]])
                report = member.sequence.report(member.layer, member.stage)
                report.fired_at = min(report.fired_at, at)

    def apply(self, residual: Residual, board: ConditionEvaluator, batch: Batch) -> Residual:
        """residual (token, d_model) float32 -> the same with this call's rows changed."""
        before = residual if self._tokens is None else residual.index_select(0, self._tokens)
        norms = torch.linalg.vector_norm(before, dim=-1).clamp_min(1e-12)
        parameters = self._parameters
        if self._relative is not None:
            parameters = torch.where(self._relative, parameters * norms[:, None], parameters)
        acting = self._acting(board)
        if acting is not None:  # a weight of 0 is the identity, exactly, in every operation
            weights = acting.to(parameters.dtype) if self._weights is None else self._weights * acting
            parameters = parameters * torch.addcmul(self._unweighted, self._weighted, weights[:, None])
        after = self._operation.apply(before, self._directions, parameters)
        self._note(before, after, norms, acting, batch)
        return after if self._tokens is None else residual.index_copy(0, self._tokens, after)

    def _acting(self, board: ConditionEvaluator) -> Bool[Tensor, "token"] | None:
        acting = None if self._weights is None else self._weights != 0.0
        if self._circuit is not None:
            holds = board.holds if self._tokens is None else board.holds.index_select(0, self._tokens)
            fired = self._circuit.evaluate(holds)
            acting = fired if acting is None else acting & fired
        return acting

    def _note(
        self, before: Residual, after: Residual, norms: Tensor, acting: Bool[Tensor, "token"] | None, batch: Batch
    ) -> None:
        change = torch.linalg.vector_norm(after - before, dim=-1)  # exactly 0 where the step did not act
        if self._decode:  # one token a member: no scatter needed
            self._dose.addcdiv_(change, norms)
            self._count += 1.0 if acting is None else acting
        else:
            self._dose.index_add_(0, self._part, change / norms)
            self._count.index_add_(0, self._part, torch.ones_like(norms) if acting is None else acting.to(norms.dtype))
        if self._circuit is None or acting is None:
            return
        positions = batch.positions if self._tokens is None else batch.positions[self._tokens]
        first = torch.where(acting, (positions - self._lasts).clamp_min_(-1), NEVER)
        if self._decode:
            torch.minimum(self._fired, first, out=self._fired)
        else:
            self._fired.scatter_reduce_(0, self._part, first, "amin")

    def collect(self) -> None:
        """Adds the sums to the sequences and starts again from zero. The one place where they leave the device."""
        doses, counts, fired = self._dose.tolist(), self._count.tolist(), self._fired.tolist()
        for (member, block), dose, count, first in zip(self._parts, doses, counts, fired, strict=True):
            met = (dose, count, NEVER if member.step.decision is None else first)
            member.sequence.report(member.layer, member.stage).add(*met)
            if block != REST:
                member.sequence.block_report(block, member.layer, member.stage).add(*met)
        self._dose.zero_()
        self._count.zero_()
        self._fired.fill_(NEVER)


def _parts(members: list[_Member], decode: bool) -> tuple[list[tuple[_Member, int]], list[int]]:
    """(member, shared block) of every sum that is kept, and to which of them each token belongs."""
    if decode:
        return [(member, REST) for member in members], list(range(len(members)))
    parts: list[tuple[_Member, int]] = []
    spread: list[int] = []
    for member in members:
        first = member.tokens[0] - member.offset
        for block, count in block_runs(member.sequence, first, first + len(member.tokens)):
            spread += [len(parts)] * count
            parts.append((member, block))
    return parts, spread


def _generated_index(sequence: Sequence, position: int) -> int:
    return max(position - (sequence.prompt_length - 1), -1)


def _padded(directions: list[Float[Tensor, "k d_model"]]) -> Float[Tensor, "member k d_model"]:
    """Rows of different k side by side; a zero row is unused."""
    most = max(d.shape[0] for d in directions)
    stacked = directions[0].new_zeros(len(directions), most, directions[0].shape[1])
    for row, direction in enumerate(directions):
        stacked[row, : direction.shape[0]] = direction
    return stacked


class SteeringBatch:
    """Everything that steers one pass. A decode pass with the same rows as the last reuses its stacks.

    openings: layers with rows of the bank; places: where each token has its own. visits: layers where more than those act.
    layers: both.
    """

    def __init__(
        self, batch: Batch, bank: SteeringBank, state: Float[Tensor, "slot column"], device: torch.device
    ) -> None:
        self.key = batch.key
        self._bank = bank
        self.board = ConditionEvaluator(batch, state, device)
        self.openings = bank.layers_of(tuple(segment.sequence.slot for segment in batch.segments))
        self._calls = _stack(batch, self.board.width, device)
        self._blocks = OpeningBlocks(batch, device) if self.openings and not batch.decode else None
        self._laid: int | None = None  # how the bank lay when the places were found
        self.places: Int[Tensor, token] = torch.zeros(batch.tokens, dtype=torch.int64, device=device)
        self.visits = frozenset(self._calls) | self.board.layers
        self.layers = self.openings | self.visits

    @property
    def steady(self) -> bool:
        """Whether every pass of these rows does the same from here on: no step begins, ends or fades any more."""
        return all(call.steady for calls in self._calls.values() for call in calls)

    def begin(self, batch: Batch) -> None:
        """Once a pass, on the host: which steps act at which positions, with which weight."""
        if self.openings and self._laid != self._bank.moves:
            self._laid, self.places = self._bank.moves, self._bank.places(batch)
        positions = batch.positions_on_host() if self._calls else []
        for calls in self._calls.values():
            for call in calls:
                call.time(positions)

    def apply(self, layer: int, residual: Residual, batch: Batch) -> Residual:
        """residual (token, d_model) float32 as it arrives -> as it leaves. Conditions first, then in the order written."""
        if layer in self.board.layers:
            self.board.read(layer, residual)
        if layer in self.openings:
            residual = self._bank.add(layer, residual, self.places, self._blocks)
        for call in self._calls.get(layer, ()):
            residual = call.apply(residual, self.board, batch)
        return residual

    def sums(self, layer_count: int) -> Float[Tensor, "layer sum"]:
        """To which a compiled pass adds the 1 / |r| it meets: one a token, or, in a decode pass, the bank's own, one a slot."""
        if self._blocks is None:
            return self._bank.inverse[Phase.GENERATED]
        return torch.zeros(layer_count, len(self.places), device=self.places.device)

    def added(self, layers: Collection[int], inverse: Float[Tensor, "layer sum"]) -> None:
        """A compiled pass has added the bank's rows at some layers by itself. inverse: its `sums`."""
        if self._blocks is not None:
            self._bank.added(layers, inverse, self.places, self._blocks)

    def collect(self) -> None:
        """What was done so far goes to the sequences' reports."""
        if self._blocks is not None:
            self._blocks.collect()
        for calls in self._calls.values():
            for call in calls:
                call.collect()


def _acted_on(segment: Segment, timing: Timing, decode: bool) -> tuple[int, ...]:
    """Flat rows of a segment that a step may act on. A decode stack is kept from pass to pass, so there the row stays."""
    if decode:
        return (segment.start,) if timing.end > segment.first else ()
    low = max(timing.start, segment.first)
    high = min(timing.end, segment.last_position + 1)
    offset = segment.start - segment.first
    return tuple(range(int(low) + offset, int(high) + offset)) if low < high else ()


def _members(batch: Batch) -> Iterable[_Member]:
    for segment in batch.segments:
        sequence = segment.sequence
        for layer, program in sequence.plan.layers.items():
            for stage, step in enumerate(program.steps):
                timing = Timing.of(step, sequence.plan.thresholds, sequence.prompt_length)
                tokens = _acted_on(segment, timing, batch.decode)
                if tokens:
                    yield _Member(sequence, layer, stage, step, timing, tokens, segment.start - segment.first)


def _stack(batch: Batch, width: int, device: torch.device) -> dict[int, tuple[StackedCall, ...]]:
    """One call per (layer, stage, operation): rows act in their own order, rows never wait for each other's."""
    found: dict[tuple[int, int, str], list[_Member]] = {}
    for member in _members(batch):
        found.setdefault((member.layer, member.stage, member.step.operation), []).append(member)
    calls: dict[int, list[StackedCall]] = {}
    for (layer, _, operation), members in sorted(found.items(), key=lambda item: item[0]):
        calls.setdefault(layer, []).append(StackedCall(operation, members, batch, width, device))
    return {layer: tuple(stacked) for layer, stacked in calls.items()}
