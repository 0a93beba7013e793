"""SteeringBatch: everything that steers one pass: prepared on the host, applied at each layer on the device.

At a layer, conditions are read first; then the static adds are added, then the operations of each plan in their order;
then the dose guard of a request bounds what all of them changed together, mandatory operations act, and
controllers of strengths read the result.
Doses are summed per layer and token or per operation, and moved to the ledgers of the requests afterwards.
"""

from collections.abc import Iterator, Sequence
from itertools import chain

import torch

from steering.engine.transformers.batch import Batch, Segment
from steering.engine.transformers.sequence import Sequence as Row
from steering.engine.transformers.steering.bank import MAX_NUMBERS, StaticRows, SteeringBank, norms_of
from steering.engine.transformers.steering.conditions import ConditionEvaluator
from steering.engine.transformers.steering.dose import DoseSums
from steering.engine.transformers.steering.holds import held_readouts
from steering.engine.transformers.steering.stacked import OperationStack, members_of
from steering.engine.transformers.steering.token_sums import DoseLimit, TokenSums
from steering.shapes import Float, Int, Residual, Tensor


class SegmentSteering:
    """The conditions and operations of some segments of a pass: of all decode tokens, or of all pieces of prompts."""

    def __init__(self, segments: Sequence[Segment], bank: SteeringBank) -> None:
        self.rows = tuple(segment.sequence for segment in segments)
        self.conditions = ConditionEvaluator(segments, bank)
        self._members = members_of(segments)
        self._decode, self._bank = all(segment.decodes for segment in segments), bank
        self._stacks = {layer: self._build(layer) for layer in self._members} if self._decode else {}
        self._sums: list[DoseSums] = [stack.sums for stack in chain.from_iterable(self._stacks.values())]
        self.layers = frozenset(self._members) | self.conditions.layers

    def _build(self, layer: int) -> list[OperationStack]:
        return [OperationStack(members, self._bank) for members in self._members[layer]]

    def begin(self) -> None:
        """Before each pass."""
        self.conditions.begin()
        for stack in chain.from_iterable(self._stacks.values()):
            stack.begin()

    def stacks(self, layer: int) -> Iterator[OperationStack]:
        """The operations of a layer. Those of prompts are built here and kept nowhere: the memory of one layer is free
        for the next."""
        if self._decode:
            yield from self._stacks.get(layer, ())
        elif layer in self._members:
            for stack in self._build(layer):
                stack.begin()
                self._sums.append(stack.sums)
                yield stack

    def collect(self) -> None:
        """Moves the doses to the ledgers."""
        for sums in self._sums:
            sums.collect()


class SteeringBatch:
    """Steers the tokens of one batch.

    static_layers: where static adds act; row_indices: each token's row of them. call_layers: where more than static adds
    acts, so that `apply` must be called. layers: both. tokens: of the batch. static_sums: (layer, token), to which a pass that adds the static
    adds by itself (not through `apply`) adds the 1 / |r| it finds.
    """

    def __init__(self, batch: Batch, parts: Sequence[SegmentSteering], bank: SteeringBank) -> None:
        self.parts, self._bank = parts, bank
        self.static_layers = bank.layers_of(tuple(segment.sequence.row for segment in batch.segments))
        self._sums = TokenSums(batch.segments, batch.tokens, bank.static_adds.shape[1], bank.device)
        self.static_sums: Float[Tensor, "layer token"] = self._sums.static
        self._limit = DoseLimit(batch.segments, batch.tokens, bank.device)
        self.call_layers = self._limit.layers.union(*(part.layers for part in parts))
        self.layers = self.static_layers | self.call_layers
        self._measured_layers = self.static_layers | self._sums.whole_layers | self._limit.layers
        self._segments, self.tokens = batch.segments, batch.tokens
        self._layout: int | None = None
        self._static_rows: StaticRows | None = None
        self.row_indices: Int[Tensor, token] = torch.zeros(batch.tokens, dtype=torch.int64, device=bank.device)

    def begin(self) -> None:
        """Before each pass, on the host."""
        if self.static_layers and self._layout != self._bank.layout:
            self._layout, self._static_rows = self._bank.layout, None
            self.row_indices = self._bank.row_indices(self._segments, self.tokens)
        self._sums.passes += 1
        self._limit.begin()
        for part in self.parts:
            part.begin()

    def gathers(self, layers: frozenset[int]) -> bool:
        """Whether the static adds of some layers are few enough to be gathered at once."""
        return self.tokens * len(layers) * self._bank.static_adds.shape[-1] <= MAX_NUMBERS

    def static_rows(self, layers: frozenset[int], dtype: torch.dtype) -> StaticRows:
        """The static adds at some of `static_layers`, for an engine that adds them by itself. Kept for the passes that this
        batch serves."""
        if self._static_rows is None or self._static_rows.layers != tuple(sorted(layers)):
            self._static_rows = StaticRows(self._bank, layers, self.row_indices, dtype)
        return self._static_rows

    def apply(self, layer: int, residual: Residual, batch: Batch) -> Residual:
        """residual (token, d_model) float32 as it arrives at the layer -> as it leaves."""
        arriving, inverse = residual, None
        for part in self.parts:
            if layer in part.conditions.layers:
                part.conditions.read(layer, residual)
        if layer in self._measured_layers:
            inverse = norms_of(residual).reciprocal()
        if layer in self.static_layers:
            residual = residual + self._bank.rows_at(layer, self.row_indices)
        stacks = [(stack, part.conditions.verdicts) for part in self.parts for stack in part.stacks(layer)]
        for stack, verdicts in stacks:
            if not stack.exempt:
                residual = stack.apply(residual, verdicts)
        factor = None
        if inverse is not None and layer in self._limit.layers:
            residual, factor = self._limit.apply(arriving, residual, inverse)
        for stack, verdicts in stacks:
            if stack.exempt:
                residual = stack.apply(residual, verdicts)
        if inverse is not None:
            self._sums.add(layer, (arriving, residual), inverse, factor, static=layer in self.static_layers)
        for stack, _ in stacks:
            stack.finish(residual, None if stack.exempt else factor, batch.positions)
        return residual

    def finish(self) -> None:
        """After each pass: stores the decisions with their requests."""
        for part in self.parts:
            part.conditions.finish()

    def collect(self) -> None:
        """Moves the doses of the passes so far to the ledgers, but for those of `parts`."""
        self._sums.collect()


class SteeringRunner:
    """Steers the passes of one engine: rows of the bank, one SteeringBatch for each pass, and the ledgers' sums.

    The stacks of decode tokens are built once and serve every pass with the same requests at the same flat tokens.
    """

    def __init__(self, layer_count: int, d_model: int, device: torch.device) -> None:
        self.bank = SteeringBank(layer_count, d_model, device)
        self._key: tuple[tuple[int, int], ...] = ()
        self._decode: SegmentSteering | None = None
        self._kept: SteeringBatch | None = None

    def admit(self, sequence: Row) -> None:
        """Gives a request its row."""
        sequence.row = self.bank.allocate(sequence.plan)

    def release(self, sequence: Row) -> None:
        """Completes a request's ledger and takes its row back."""
        self.flush()
        if sequence.row:
            if count := len(sequence.plan.thresholds):
                sequence.dose.scores = tuple(self.bank.scores[sequence.row, :count].tolist())
            sequence.dose.held = held_readouts(self.bank, sequence.row, sequence.plan)
        self.discard(sequence)

    def abandon(self, sequence: Row) -> None:
        """Takes a request's row back without its sums. Those of other requests that were not collected are lost, and their reports say so."""
        for row in (sequence, *(self._decode.rows if self._decode else ())):  # the batch that is kept has no others
            row.dose.incomplete = True
        self.discard(sequence)

    def discard(self, sequence: Row) -> None:
        """Takes a request's row back, and drops the stacks of decode tokens with the sums that were not collected."""
        self._decode, self._kept, self._key = None, None, ()
        self.bank.release(sequence.row)
        sequence.row = 0

    def flush(self) -> None:
        """Moves all sums to the ledgers and drops the stacks of decode tokens."""
        for sums in (self._kept, self._decode):
            if sums is not None:
                sums.collect()
        self._decode, self._kept, self._key = None, None, ()

    def prepare(self, batch: Batch) -> SteeringBatch:
        """Returns what steers a batch, ready to begin."""
        decode = [segment for segment in batch.segments if segment.decodes]
        prompts = [segment for segment in batch.segments if not segment.decodes]
        key = tuple((segment.sequence.id, segment.start) for segment in decode)
        if decode and key != self._key:
            self.flush()
            self._decode, self._key = SegmentSteering(decode, self.bank), key
        parts = [self._decode] if decode and self._decode is not None else []
        if prompts:
            parts.append(SegmentSteering(prompts, self.bank))
            return SteeringBatch(batch, parts, self.bank)
        if self._kept is None or self._kept.tokens != batch.tokens:
            if self._kept is not None:
                self._kept.collect()
            self._kept = SteeringBatch(batch, parts, self.bank)
        return self._kept

    def finish(self, steering: SteeringBatch) -> None:
        """After a pass: keeps decisions, and moves the doses of prompts, which block sharing and answers need at once."""
        steering.finish()
        if steering is not self._kept:
            steering.collect()
            for part in steering.parts:
                if part is not self._decode:
                    part.collect()
