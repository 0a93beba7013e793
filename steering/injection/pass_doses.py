"""PassDoses: measures what the edits of a pass do at each token, and sums it by slot. The only place where doses are summed."""

from collections.abc import Iterator, Sequence

import torch

from steering.injection.dose import BLOCK, NO_BLOCK
from steering.injection.rows import Segment, SteeredRow
from steering.injection.slots import DOSE, NEVER, NO_EDIT, UNSTEERED_SLOT, Slots
from steering.shapes import Bool, Float, Int, Tensor

PASSES = 16
"""Passes of decode tokens that are summed together, because a sum costs as many operations for one of them."""
CHANGED = 1e-6
"""The relative dose from which on a token counts as changed: below it is rounding, as where the guard leaves nothing of a change."""
_NUMBERS = 1 << 20
"""float32 numbers that passes note before they are summed."""


def runs(segment: Segment[SteeredRow]) -> Iterator[tuple[int, int]]:
    """Cuts a segment into neighbouring tokens whose sums are kept apart: yields (block, number of tokens)."""
    row, first, end = segment.row, segment.first, segment.first + segment.length
    shared = row.prompt_length - 1 if row.doses.by_block and not segment.again else 0
    while first < end:
        block, stop = NO_BLOCK, end
        if first < shared:
            block = first // BLOCK
            stop = min((block + 1) * BLOCK, shared, end)
        yield block, stop - first
        first = stop


class PassDoses:
    """Notes the doses of the tokens of one pass, or of up to PASSES passes over the same requests, and sums them.

    layers: where anything acts, in order; tensors have a row for each.
    edits (pass, layer, token, edit): signed. changes (pass, layer, token): |r' - r| / |r|. scaled: 1 where the guard scaled the
    change down. acting (pass, layer, token, column): whether a weight was not 0.
    """

    def __init__(
        self,
        segments: Sequence[Segment[SteeredRow]],
        tokens: int,
        layers: tuple[int, ...],
        slots: Slots,
        rows: Int[Tensor, "layer token edit"],
        columns: int,
        passes: int,
    ) -> None:
        """rows: of the edits of each token. columns: interventions of a plan, at most."""
        device = self._device = slots.device
        self._slots, self.layers, count = slots, layers, len(layers)
        self._runs: list[tuple[Segment[SteeredRow], int]] = []
        owner = torch.zeros(tokens, dtype=torch.int64)
        for segment in segments:
            token = segment.start
            for block, length in runs(segment):
                self._runs.append((segment, block))
                owner[token : token + length] = len(self._runs)
                token += length
        self._run_of_token = owner.to(device)
        self._slot_of_run = torch.tensor(
            [UNSTEERED_SLOT, *(UNSTEERED_SLOT if one.again else one.row.slot for one, _ in self._runs)], device=device
        )
        size = max(count * tokens * (rows.shape[2] + columns), 1)
        self._most = min(passes, max(_NUMBERS // size, 1))
        self.edits = torch.zeros(self._most, count, tokens, rows.shape[2], device=device)
        self.changes = torch.zeros(self._most, count, tokens, device=device)
        self.scaled = torch.zeros(self._most, count, tokens, device=device)
        self.acting = torch.zeros(self._most, count, tokens, columns, dtype=torch.bool, device=device)
        self._owners = slots.codes[:, DOSE][rows]
        present = torch.zeros(count, tokens, columns, device=device)
        present.scatter_add_(2, self._owners, (rows != NO_EDIT).to(torch.float32))
        self._present = present > 0.0
        self._firsts = torch.zeros(self._most, tokens, dtype=torch.int64, device=device)
        self.passes = 0

    def begin(self, generated: Int[Tensor, "token"]) -> None:
        """Before each pass. generated: the index of each token among the generated ones, -1 in front of them."""
        if self.passes == self._most:
            self.collect()
        self._firsts[self.passes] = generated
        self.passes += 1

    def note_acting(self, layer: int, acting: Bool[Tensor, "token column"], *, every: bool) -> None:
        """Notes which interventions act, from the layer with a number on. every: in every pass that follows too."""
        self.acting[slice(None) if every else self.passes - 1, layer:] = acting

    def collect(self) -> None:
        """Adds what was noted to the sums of the slots, and to those of prompt blocks, and begins again."""
        if not self.passes:
            return
        here = slice(self.passes)
        squares = self.edits[here].square()
        by_column = torch.zeros_like(self.acting[here], dtype=torch.float32)
        by_column.scatter_add_(3, self._owners.expand_as(squares), squares)
        acted = self.acting[here] & self._present
        first = torch.where(acted.any(1), self._firsts[here, :, None], NEVER).amin(0)
        doses = torch.stack([by_column.sqrt_().sum(0), acted.sum(0, dtype=torch.float32)], dim=-1)
        changes = self.changes[here]
        changed = (changes > CHANGED).any(1).sum(0, dtype=torch.float32)
        totals = torch.stack([changes.sum((0, 1)), changed, self.scaled[here].sum((0, 1))], dim=-1)
        self.passes = 0
        count, columns = len(self._slot_of_run), doses.shape[2]
        by_run = doses.new_zeros(doses.shape[0], count, columns, 2).index_add_(1, self._run_of_token, doses)
        totals_by_run = totals.new_zeros(count, 3).index_add_(0, self._run_of_token, totals)
        first_by_run = first.new_full((count, columns), NEVER)
        first_by_run.scatter_reduce_(0, self._run_of_token[:, None].expand_as(first), first, "amin")
        slots, layers = self._slots, torch.tensor(self.layers, device=self._device)
        at = self._slot_of_run
        slots.fired.scatter_reduce_(0, at[:, None].expand_as(first_by_run), first_by_run, "amin")
        places = (at[None, :] * slots.layer_count + layers[:, None]).flatten()
        slots.doses.flatten(0, 1)[:, :columns].index_add_(0, places, by_run.flatten(0, 1))
        slots.totals.index_add_(0, at, totals_by_run)
        self._keep_blocks(by_run, totals_by_run)

    def _keep_blocks(self, doses: Float[Tensor, "layer run column 2"], totals: Float[Tensor, "run 3"]) -> None:
        kept = [(number, run) for number, run in enumerate(self._runs, start=1) if run[1] != NO_BLOCK]
        if not kept:
            return
        doses, totals = doses.cpu(), totals.cpu()
        for number, (segment, block) in kept:
            own = segment.row.doses
            rows = [self.layers.index(layer) for layer in own.layers]
            own.add_block(block, doses[rows, number], totals[number])
