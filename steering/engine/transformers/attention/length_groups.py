"""LengthGroups: the segments of a pass in groups of about equal length, each padded to one batched attention call."""

from collections.abc import Iterable, Sequence
from functools import cached_property

import torch

from steering.engine.transformers.batch import block_table
from steering.engine.transformers.memory.paged_cache import PagedLayer
from steering.engine.transformers.request import Request
from steering.injection.rows import Segment
from steering.shapes import Bool, Float, Int, Tensor

UNEVEN = 1.5
"""A group's segments are at most that many times as long as its shortest: padding costs, and so does every group."""
UNEVEN_DECODE = 3.0
"""The same for the pasts of single tokens: there a group costs more than its padding."""


class Group:
    """Segments in one padded call, padded on the right with repetitions of their last token, whose results are dropped.

    fresh: all begin at position 0, so that they see tokens of this pass alone; otherwise their past is in the cache.
    longest: tokens of the longest segment. filled: positions that the segment with the longest past sees.
    """

    def __init__(self, segments: Sequence[Segment[Request]], device: torch.device) -> None:
        self.segments, self.device = segments, device
        self.fresh = segments[0].first == 0
        self.longest = max(segment.length for segment in segments)
        self.filled = max(segment.last_position for segment in segments) + 1
        self._masks: dict[int | None, Tensor] = {}

    @cached_property
    def _tokens(self) -> Int[Tensor, "padded"]:
        flat = [min(s.start + n, s.end - 1) for s in self.segments for n in range(self.longest)]
        return torch.tensor(flat, device=self.device)

    @cached_property
    def _blocks(self) -> Int[Tensor, "segment block"]:
        return block_table(self.segments, self.device)

    def tokens_of(
        self, states: Float[Tensor, "1 head token head_dim"]
    ) -> Float[Tensor, "segment head longest head_dim"]:
        """Returns the tokens of each segment; a view where there is only one."""
        first = self.segments[0]
        if len(self.segments) == 1:
            return states[:, :, first.start : first.end]
        rows = states[0].index_select(1, self._tokens)
        return rows.view(states.shape[1], len(self.segments), -1, states.shape[3]).transpose(0, 1)

    def past(
        self, layer: PagedLayer
    ) -> tuple[Float[Tensor, "segment kv_head filled head_dim"], Float[Tensor, "segment kv_head filled head_dim"]]:
        """Copies the keys and values that the cache holds for each segment, the tokens of this pass included."""
        return layer.past(self._blocks, self.filled)

    def mask(self, window: int | None, *, needed: bool = False) -> Bool[Tensor, "segment 1 longest filled"] | None:
        """Returns which positions each token sees; None where that is all before it and no mask is `needed`."""
        if self.fresh and not needed and (window is None or self.filled <= window):
            return None
        if window not in self._masks:
            firsts = torch.tensor([segment.first for segment in self.segments], device=self.device)
            at = firsts[:, None] + torch.arange(self.longest, device=self.device)
            self._masks[window] = visible(at, self.longest if self.fresh else self.filled, window)
        return self._masks[window]


def visible(at: Int[Tensor, "row query"], positions: int, window: int | None) -> Bool[Tensor, "row 1 query position"]:
    """Returns which of the first positions each query sees, from its own position."""
    index = torch.arange(positions, device=at.device)
    seen = index <= at[:, :, None]
    if window is not None:
        seen = seen & (index > at[:, :, None] - window)
    return seen[:, None]


class LengthGroups:
    """All segments of a pass, sorted into groups, short ones first. back: the index of each flat token of the pass among the groups'
    tokens; None: the same."""

    def __init__(self, segments: Iterable[Segment[Request]], device: torch.device) -> None:
        members: list[list[Segment[Request]]] = []
        for segment in sorted(segments, key=lambda s: (s.first > 0, s.length > 1, s.last_position, s.length)):
            if not members or not _alike(members[-1], segment):
                members.append([])
            members[-1].append(segment)
        self.groups = [Group(found, device) for found in members]
        self.back: Int[Tensor, token] | None = None
        if len(members) == len(members[0]) == 1:
            return
        flat = [0] * sum(segment.length for found in members for segment in found)
        offset = 0
        for group in self.groups:
            for segment in group.segments:
                flat[segment.start : segment.end] = range(offset, offset + segment.length)
                offset += group.longest
        self.back = torch.tensor(flat, device=device)

    def restored(
        self, parts: list[Float[Tensor, "segment head longest head_dim"]]
    ) -> Float[Tensor, "1 head token head_dim"]:
        """Returns the groups' results as flat tokens of the pass, in its order."""
        if self.back is None:
            return parts[0]
        flat = [part.transpose(0, 1).reshape(part.shape[1], -1, part.shape[3]) for part in parts]
        together = flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)
        return together.index_select(1, self.back).unsqueeze(0)


def _alike(group: list[Segment[Request]], segment: Segment[Request]) -> bool:
    """Whether a segment, whose past is not shorter than those of the group, may be padded together with them."""
    lengths = [one.length for one in (*group, segment)]
    uneven = UNEVEN_DECODE if max(lengths) == 1 else UNEVEN
    return (
        (group[0].first > 0) == (segment.first > 0)
        and segment.last_position + 1 <= uneven * (group[0].last_position + 1)
        and max(lengths) <= UNEVEN * min(lengths)
    )
