"""OperationStack: one operation at one layer for many requests at once, each with directions and parameters of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

import torch

from steering.engine.transformers.batch import Segment
from steering.engine.transformers.steering.bank import SteeringBank, norms_of
from steering.engine.transformers.steering.dose import NEVER, DoseSums
from steering.engine.transformers.steering.gather import DirectionTable, Spread, index_of, put, take
from steering.engine.transformers.steering.holds import HoldControl, Place
from steering.engine.transformers.steering.timing import Timing, TreeGroups
from steering.operations import OPERATIONS
from steering.plan.holds import hold_columns
from steering.plan.order import weight_index
from steering.plan.types import Intervention, OperationCall
from steering.shapes import Bool, Float, Int, Residual, Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """One call of a request's plan, and the tokens of the pass it may act on.

    tokens: flat tokens of the pass, neighbours.
    """

    segment: Segment
    layer: int
    number: int
    call: OperationCall
    intervention: Intervention
    timing: Timing
    tokens: range

    @property
    def first(self) -> int:
        """Position of the first token in this pass; a decode member is used in many passes."""
        segment = self.segment
        return segment.sequence.computed if segment.decodes else segment.first + self.tokens.start - segment.start

    @property
    def stacks_with(self) -> tuple[bool, int, str, int, bool, bool]:
        """Members are stacked if they are equally far in their order and call the same operation on as many directions, if all
        or none of them hold a readout or replay it, and if all or none of them are exempt from the dose guard, which come last."""
        exempt = self.segment.sequence.plan.is_exempt(self.call)
        rows, holds = self.call.directions.shape[0], bool(self.intervention.holds)
        replays = holds and self.segment.sequence.replayed is not None
        return exempt, self.number, self.intervention.spec.operation, rows, holds, replays

    @property
    def place(self) -> Place:
        """Its controller, for a member that holds a readout."""
        sequence = self.segment.sequence
        column = hold_columns(sequence.plan)[self.layer, self.number]
        hold, replayed = self.intervention.holds[self.layer], None
        if sequence.replayed is not None:
            replayed = sequence.replayed.strengths_at(column, self.first, len(self.tokens))
        return Place(sequence.row, column, self.call.directions[0], hold, replayed)


def members_of(segments: Sequence[Segment]) -> dict[int, list[list[Member]]]:
    """layer -> members that can be stacked, in the order in which they act."""
    found: dict[int, list[Member]] = {}
    for segment in segments:
        sequence = segment.sequence
        plan, timings = sequence.plan, dict[int, Timing]()  # one for each intervention, whatever its layers
        for layer, steering in plan.layers.items():
            for number, call in enumerate(steering.calls):
                intervention, index = plan.intervention(call), call.interventions[0]
                if index not in timings:
                    timings[index] = Timing(intervention, plan, sequence.ids, sequence.prompt_length)
                if tokens := _tokens(segment, timings[index]):
                    member = Member(segment, layer, number, call, intervention, timings[index], tokens)
                    found.setdefault(layer, []).append(member)
    alike = attrgetter("stacks_with")  # sorting is stable: tokens stay in order
    return {
        layer: [list(group) for _, group in groupby(sorted(members, key=alike), alike)]
        for layer, members in found.items()
    }


def _tokens(segment: Segment, timing: Timing) -> range:
    """Flat tokens of a segment that a call may act on. A decode stack serves many passes, so the token is kept while any position in scope is to come."""
    if segment.decodes:
        return range(segment.start, segment.end) if timing.end > segment.first else range(0)
    return segment.tokens_in(timing.start, timing.end)


class OperationStack:
    """Applies one operation to the tokens of its members: `begin` before a pass, `apply` at the layer, and `finish` with what
    leaves the layer. exempt: from the dose guard. sums: the doses, apart for every request and run of positions."""

    def __init__(self, members: Sequence[Member], bank: SteeringBank) -> None:
        device = self._device = bank.device
        self._members = members
        self.exempt = members[0].segment.sequence.plan.is_exempt(members[0].call)
        self._decode = all(member.segment.decodes for member in members)
        name = members[0].intervention.spec.operation
        self._operation = OPERATIONS[name]
        self._spread = Spread([len(member.tokens) for member in members], device)
        self.tokens = index_of([member.tokens for member in members], device)
        self._directions = DirectionTable([member.call.directions for member in members], self._spread, device)
        parameters = [member.intervention.parameters[member.layer] for member in members]
        self._parameters = self._spread.of(torch.tensor(parameters, device=device))
        weighted = torch.arange(len(self._operation.parameters), device=device) == weight_index(name)
        self._weighted, self._unweighted = weighted.to(torch.float32), (~weighted).to(torch.float32)
        self._relative = self._relative_mask()
        self._collect_conditions()
        entries = [
            (member.segment.sequence.dose, (member.layer, member.number), run)
            for member in members
            for run in member.segment.sequence.dose.runs(member.first, len(member.tokens))
        ]
        self.sums = DoseSums(entries, device)
        self._hold: HoldControl | None = None
        if members[0].intervention.holds:
            self._hold = HoldControl(bank, [member.place for member in members])
            single = self._spread.one_each or self._hold.replayed is not None
            assert single, "the scheduler gives plans with `hold` one generated position at a time"
        self._weights: Float[Tensor, token] | None = None
        self._weight_is_final = False

    def _collect_conditions(self) -> None:
        members = self._members
        self._trees: TreeGroups | None = None
        if any(member.intervention.condition for member in members):
            self._trees = TreeGroups([m.intervention.condition for m in members], self._spread.counts, self._device)
            lasts = [member.segment.sequence.prompt_length - 1 for member in members]
            self._lasts = self._spread.of(torch.tensor(lasts, device=self._device))

    def _relative_mask(self) -> Bool[Tensor, "token n"] | None:
        if not any(member.intervention.relative for member in self._members):
            return None
        scaled = [name in self._operation.scaled for name in self._operation.parameters]
        rows = [[member.intervention.relative and flag for flag in scaled] for member in self._members]
        return self._spread.of(torch.tensor(rows, device=self._device))

    def begin(self) -> None:
        """Before each pass, on the host: sets the weights of its tokens."""
        if self._weight_is_final:
            return
        pairs = [(member, member.first) for member in self._members]
        self._weights = None
        self._weight_is_final = all(
            member.timing.is_constant_from(first) if self._decode else not member.timing.varies
            for member, first in pairs
        )
        if not self._weight_is_final:
            weights = [m.timing.at(first + n) for m, first in pairs for n in range(len(m.tokens))]
            self._weights = torch.tensor(weights, device=self._device)
        for member, first in pairs:
            if member.intervention.condition is None:
                self._note_first(member, first)

    @staticmethod
    def _note_first(member: Member, first: int) -> None:
        """An unconditional call acts at the first of its tokens with a weight, which is known without the device."""
        acting = (first + n for n in range(len(member.tokens)) if member.timing.at(first + n) != 0.0)
        position = next(acting, None)
        if position is not None:
            sequence = member.segment.sequence
            run = next(sequence.dose.runs(position, 1))
            at = max(position - (sequence.prompt_length - 1), -1)
            sequence.dose.note((member.layer, member.number), run, 0.0, 0.0, 0.0, at)

    def apply(self, residual: Residual, verdicts: Int[Tensor, "row threshold"]) -> Residual:
        """residual (token, d_model) float32 of the pass -> the same with this stack's tokens changed."""
        before = take(residual, self.tokens)
        self._norms, parameters = norms_of(before), self._parameters
        if self._relative is not None:
            parameters = torch.where(self._relative, parameters * self._norms[:, None], parameters)
        self._acted = self._acting(verdicts)
        weights = self._token_weights(self._acted)
        if weights is not None:  # a weight of 0 is exactly the identity in every operation
            parameters = parameters * torch.addcmul(self._unweighted, self._weighted, weights[:, None])
        after = self._directions.map(
            lambda tokens, directions: self._operation.apply(take(before, tokens), directions, take(parameters, tokens))
        )
        self._changes = torch.linalg.vector_norm(after - before, dim=-1)  # exactly 0 where it did not act
        return put(residual, self.tokens, after)

    def _token_weights(self, acting: Bool[Tensor, "token"] | None) -> Float[Tensor, "token"] | None:
        """The factor of each token's weighted parameter: of schedule, scope and condition, and of the controller."""
        weights = None
        if acting is not None:
            weights = acting.to(torch.float32) if self._weights is None else self._weights * acting
        if self._hold is None:
            return weights
        held = self._hold.weights()
        return held if weights is None else weights * held

    def _acting(self, verdicts: Int[Tensor, "row threshold"]) -> Bool[Tensor, "token"] | None:
        acting = None if self._weights is None else self._weights != 0.0
        if self._trees is not None:
            hold = self._trees.hold(take(verdicts, self.tokens))
            acting = hold if acting is None else acting & hold
        return acting

    def finish(
        self, residual: Residual, factor: Float[Tensor, "token"] | None, positions: Int[Tensor, "token"]
    ) -> None:
        """After `apply`: adds to the sums, and the controllers set the strength of the next token. All for all tokens of the pass.

        residual (token, d_model): as it leaves the layer. factor: what the dose guard left of each token's change.
        """
        acting, changes = self._acted, self._changes
        self.sums.add(changes if factor is None else changes * take(factor, self.tokens), self._norms, acting)
        if self._trees is not None and acting is not None:
            first = (take(positions, self.tokens) - self._lasts).clamp_min_(-1)
            self.sums.add_first(torch.where(acting, first, NEVER))
        if self._hold is not None:
            self._hold.step(take(residual, self.tokens), acting)
