"""Batch: the tokens of one forward pass: segments of requests, one after the other. A decode row is a segment of one token."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from steering.engine.transformers.memory.block_pool import BLOCK, NULL_BLOCK, blocks_for
from steering.engine.transformers.request import Request
from steering.injection.rows import Segment
from steering.shapes import Int, Tensor


@dataclass(eq=False)
class Batch:
    """What one pass computes.

    token_ids, positions: (token,). slots: where each token's key and value are written in the cache (block * BLOCK + offset).
    """

    segments: tuple[Segment[Request], ...]
    token_ids: Int[Tensor, "token"]
    positions: Int[Tensor, "token"]
    slots: Int[Tensor, "slot"]

    @property
    def tokens(self) -> int:
        """Returns the number of tokens of the pass."""
        return int(self.token_ids.shape[0])

    @cached_property
    def segment_table(self) -> Int[Tensor, "segment 3"]:
        """The first token, the number of tokens and the first position of every segment."""
        return torch.tensor([[s.start, s.length, s.first] for s in self.segments])

    @cached_property
    def block_table(self) -> Int[Tensor, "segment block"]:
        """Every segment's blocks, padded with NULL_BLOCK."""
        return block_table(self.segments, self.positions.device)


def block_table(segments: Sequence[Segment[Request]], device: torch.device) -> Int[Tensor, "segment block"]:
    """Returns the blocks that each segment's positions up to its last are in, padded with NULL_BLOCK."""
    tables = [segment.row.block_table[: blocks_for(segment.last_position + 1)] for segment in segments]
    widest = max(map(len, tables))
    return torch.tensor([[*table, *[NULL_BLOCK] * (widest - len(table))] for table in tables], device=device)


def batch_of(work: Sequence[tuple[Request, int]], device: torch.device) -> Batch:
    """Builds a pass from requests and how many of their next positions it computes; their blocks are allocated."""
    ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    segments = []
    for request, count in work:
        first, table = request.computed, request.block_table
        segments.append(Segment(request, first, len(ids), len(ids) + count))
        ids.extend(request.ids[first : first + count])
        positions.extend(range(first, first + count))
        slots.extend(table[at // BLOCK] * BLOCK + at % BLOCK for at in range(first, first + count))
    token_ids, at, slot = torch.tensor([ids, positions, slots]).to(device)
    return Batch(segments=tuple(segments), token_ids=token_ids, positions=at, slots=slot)
