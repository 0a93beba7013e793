"""Batch: token ids, absolute positions, row -> sequence. One forward pass is either packed prompts or one token a row."""

from dataclasses import dataclass, field, replace

import torch

from steering.engine.transformers.attention.length_groups import LengthGroups
from steering.engine.transformers.segment import Segment
from steering.engine.transformers.sequence import Sequence
from steering.shapes import Bool, Int, Tensor


@dataclass(frozen=True, slots=True, eq=False)
class PrefixCopies:
    """Keys and values that a packed pass copies from the slots that compute them, layer by layer, before it attends."""

    borrowers: Int[Tensor, "position"]
    lenders: Int[Tensor, "position"]
    positions: Int[Tensor, "position"]

    def table(self) -> Int[Tensor, "position 3"]:
        """Borrower, lender, position."""
        return torch.stack([self.borrowers, self.lenders, self.positions], dim=1)


@dataclass(slots=True, eq=False)
class Batch:
    """What one pass computes.

    decode: rows are slots 0..row-1, one token each; rows without a sequence are idle and their results unread.
    Otherwise segments are packed one after the other, (1, token). token_ids, positions, slots: (token,), int64.
    length: how much of the cache decode attention looks at. loans: see `shared_beginnings`.
    """

    decode: bool
    segments: tuple[Segment, ...]
    token_ids: Int[Tensor, "token"]
    positions: Int[Tensor, "token"]
    slots: Int[Tensor, "token"]
    length: int = 0
    key: tuple[int, ...] = ()
    loans: PrefixCopies | None = None
    _masks: dict[int | None, Tensor] = field(default_factory=dict)
    _side_by_side: LengthGroups | None = None
    _table: Tensor | None = None

    @property
    def tokens(self) -> int:
        return int(self.token_ids.shape[0])

    @property
    def sequences(self) -> tuple[Sequence, ...]:
        return tuple(segment.sequence for segment in self.segments)

    def over(self, token_ids: Int[Tensor, "row"], positions: Int[Tensor, "row"]) -> "Batch":
        """Decode only: the same pass over other tensors, and none of its own."""
        slots = torch.arange(len(token_ids), device=token_ids.device)
        return replace(self, token_ids=token_ids, positions=positions, slots=slots, _masks={})

    def mask(self, window: int | None) -> Bool[Tensor, "row 1 1 length"]:
        """Decode only: which cached positions each row sees; computed once a pass for each window size."""
        if window not in self._masks:
            span = torch.arange(self.length, device=self.positions.device)
            self._masks[window] = seen_by(self.positions, span, window)
        return self._masks[window]

    def side_by_side(self) -> LengthGroups:
        """Packed only: the segments in groups for attention; formed once."""
        if self._side_by_side is None:
            self._side_by_side = LengthGroups.of(self.segments, self.positions.device)
        return self._side_by_side

    def table(self) -> Int[Tensor, "segment 4"]:
        """Packed only: first token, tokens, slot and first position of every segment; made once."""
        if self._table is None:
            self._table = torch.tensor([[s.start, s.length, s.sequence.slot, s.first] for s in self.segments])
        return self._table

    def loan_table(self) -> Int[Tensor, "position 3"]:
        """Packed only: borrower, lender and position of every loan."""
        return torch.zeros(0, 3, dtype=torch.int64) if self.loans is None else self.loans.table()


def seen_by(
    positions: Int[Tensor, "row"], span: Int[Tensor, "length"], window: int | None
) -> Bool[Tensor, "row 1 1 length"]:
    """Which of the first `length` positions a token at each of `positions` sees."""
    seen = span <= positions[:, None]
    if window is not None:
        seen = seen & (span > positions[:, None] - window)
    return seen[:, None, None, :]


def packed(work: list[tuple[Sequence, int]], device: torch.device) -> Batch:
    """A prefill pass: (sequence, how many of its next positions) packed in order."""
    ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    segments = []
    for sequence, count in work:
        first = sequence.computed
        segments.append(Segment(sequence, first, len(ids), len(ids) + count))
        ids.extend(sequence.ids[first : first + count])
        positions.extend(range(first, first + count))
        slots.extend([sequence.slot] * count)
    return Batch(
        decode=False,
        segments=tuple(segments),
        token_ids=torch.tensor(ids, device=device),
        positions=torch.tensor(positions, device=device),
        slots=torch.tensor(slots, device=device),
        loans=_loans([sequence for sequence, _ in work], device),
    )


def _loans(sequences: list[Sequence], device: torch.device) -> PrefixCopies | None:
    lent = [
        (sequence.slot, lender, position) for sequence in sequences for position, lender in enumerate(sequence.borrowed)
    ]
    return PrefixCopies(*torch.tensor(lent, device=device).unbind(1)) if lent else None


def decoding(rows: list[Sequence | None], idle: list[int], length: int, device: torch.device) -> Batch:
    """A decode pass: row r is slot r. idle: the position an idle row may overwrite, since nothing valid lies there."""
    ids = [0 if sequence is None else sequence.ids[sequence.computed] for sequence in rows]
    positions = [idle[row] if sequence is None else sequence.computed for row, sequence in enumerate(rows)]
    segments = tuple(Segment(s, s.computed, row, row + 1) for row, s in enumerate(rows) if s is not None)
    return Batch(
        decode=True,
        segments=segments,
        token_ids=torch.tensor(ids, device=device),
        positions=torch.tensor(positions, device=device),
        slots=torch.arange(len(rows), device=device),
        length=length,
        key=tuple(-1 if s is None else s.id for s in rows),
    )
