"""Rows of many requests side by side: which tokens of a pass they are, and their directions without a copy per token."""

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import TypeAlias

import torch

from steering.shapes import Float, Int, Tensor

CHUNK_NUMBERS = 1 << 22
"""float32 numbers of directions that are worked on at once (16 MB): a pass needs no more, however long it is."""

Index: TypeAlias = slice | Int[Tensor, "row"]
"""Rows of a tensor: a slice where they are neighbours, which costs no copy."""


def index_of(ranges: Sequence[range], device: torch.device) -> Index:
    """Returns the index of the rows of several ranges, in the order given."""
    if all(one.stop == other.start for one, other in pairwise(ranges)):
        return slice(ranges[0].start, ranges[-1].stop) if ranges else slice(0, 0)
    return torch.tensor([row for one in ranges for row in one], dtype=torch.int64, device=device)


def take(values: Tensor, index: Index) -> Tensor:
    """The rows of an index: a view for a slice, and the tensor itself for all of its rows."""
    if not isinstance(index, slice):
        return values.index_select(0, index)
    return values if index.stop - index.start == values.shape[0] else values[index]


def put(values: Tensor, index: Index, rows: Tensor) -> Tensor:
    """Returns `values` with other rows at an index. `values` is not changed."""
    if not isinstance(index, slice):
        return values.index_copy(0, index, rows)
    if rows.shape[0] == values.shape[0]:
        return rows
    changed = values.clone()
    changed[index] = rows
    return changed


class Spread:
    """Gives each token the entry of the member it belongs to. counts: tokens of each member, which are neighbours.
    one_each: every member has one token, so that a table of members is one of tokens already."""

    def __init__(self, counts: Sequence[int], device: torch.device) -> None:
        self.counts, self._device = counts, device
        self.tokens = sum(counts)
        self.one_each = all(count == 1 for count in counts)

    @cached_property
    def members(self) -> Int[Tensor, "token"]:
        """The member of each token."""
        return torch.repeat_interleave(torch.tensor(self.counts, device=self._device), output_size=self.tokens)

    def of(self, table: Tensor) -> Tensor:
        """table (member, ...) -> (token, ...)."""
        if self.one_each:
            return table
        if len(self.counts) == 1:
            return table.expand(self.tokens, *table.shape[1:])
        return table.index_select(0, self.members)


class DirectionTable:
    """The directions (..., d_model) of each member, each distinct tensor held once, and gathered a chunk at a time."""

    def __init__(self, directions: Sequence[Float[Tensor, "..."]], spread: Spread, device: torch.device) -> None:
        distinct = {id(one): one for one in directions}
        places = {key: place for place, key in enumerate(distinct)}
        entries = [places[id(one)] for one, count in zip(directions, spread.counts, strict=True) for _ in range(count)]
        self._table = torch.stack(list(distinct.values())).to(device)
        size = max(1, CHUNK_NUMBERS // self._table[0].numel())
        starts = range(0, len(entries), size)
        self._chunks = [self._chunk(start, entries[start : start + size], device) for start in starts]

    def _chunk(self, start: int, entries: list[int], device: torch.device) -> tuple[slice, Tensor, bool]:
        """Returns neighbouring tokens, and their directions where these are a view of the table; otherwise their entries, and
        True."""
        tokens, shape = slice(start, start + len(entries)), self._table.shape[1:]
        different = entries[:1] if len(set(entries)) == 1 else entries
        index = index_of([range(entry, entry + 1) for entry in different], device)
        if isinstance(index, slice):
            return tokens, take(self._table, index).expand(len(entries), *shape), False
        return tokens, index, True

    def map(self, function: Callable[[slice, Tensor], Tensor]) -> Tensor:
        """Calls a function with tokens and their directions until all tokens had theirs, and returns its results in a row."""
        results = [
            function(tokens, self._table.index_select(0, values) if gathers else values)
            for tokens, values, gathers in self._chunks
        ]
        return results[0] if len(results) == 1 else torch.cat(results)
