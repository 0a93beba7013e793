"""LengthGroups: the segments of a pass in groups of about equal length, each padded to one batched attention call."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from steering.engine.transformers.batch import Segment, block_table
from steering.engine.transformers.memory.paged_cache import PagedLayer
from steering.shapes import Bool, Float, Int, Tensor

UNEVEN = 1.5
"""A group's segments are at most that many times as long as its shortest: padding costs, and so does every group."""
UNEVEN_DECODE = 3.0
"""The same for the pasts of single tokens: there a group costs more than its padding."""


@dataclass(slots=True, eq=False)
class Group:
    """Segments in one padded call, padded on the right with repetitions of their last token, whose results are dropped.

    fresh: all begin at position 0, so that they see tokens of this pass alone; otherwise their past is in the cache.
    """

    segments: tuple[Segment, ...]
    device: torch.device
    _tokens: Int[Tensor, "padded"] | None = None
    _blocks: Int[Tensor, "segment block"] | None = None
    _masks: dict[int | None, Tensor | None] = field(default_factory=dict)

    @property
    def fresh(self) -> bool:
        """Whether every segment starts at position 0, so that all it attends to is in this pass."""
        return self.segments[0].first == 0

    @property
    def longest(self) -> int:
        """Tokens of the longest segment."""
        return max(segment.length for segment in self.segments)

    @property
    def filled(self) -> int:
        """Positions that the segment with the longest past sees."""
        return max(segment.last_position for segment in self.segments) + 1

    def tokens_of(
        self, states: Float[Tensor, "1 head token head_dim"]
    ) -> Float[Tensor, "segment head longest head_dim"]:
        """Returns the tokens of each segment; a view where there is only one."""
        first = self.segments[0]
        if len(self.segments) == 1:
            return states[:, :, first.start : first.end]
        if self._tokens is None:
            flat = [min(s.start + n, s.end - 1) for s in self.segments for n in range(self.longest)]
            self._tokens = torch.tensor(flat, device=self.device)
        rows = states[0].index_select(1, self._tokens)
        return rows.view(states.shape[1], len(self.segments), -1, states.shape[3]).transpose(0, 1)

    def past(
        self, layer: PagedLayer
    ) -> tuple[Float[Tensor, "segment kv_head filled head_dim"], Float[Tensor, "segment kv_head filled head_dim"]]:
        """Copies the keys and values that the cache holds for each segment, the tokens of this pass included."""
        if self._blocks is None:
            self._blocks = block_table(self.segments, self.device)
        return layer.past(self._blocks, self.filled)

    def mask(self, window: int | None, *, needed: bool = False) -> Bool[Tensor, "segment 1 longest filled"] | None:
        """Returns which positions each token sees; None where that is all before it and no mask is `needed`."""
        if self.fresh and not needed and (window is None or self.filled <= window):
            return None
        if window not in self._masks or self._masks[window] is None:
            firsts = torch.tensor([segment.first for segment in self.segments], device=self.device)
            at = (firsts[:, None] + torch.arange(self.longest, device=self.device))[:, :, None]
            index = torch.arange(self.longest if self.fresh else self.filled, device=self.device)
            seen = index <= at
            if window is not None:
                seen = seen & (index > at - window)
            self._masks[window] = seen[:, None]
        return self._masks[window]


@dataclass(frozen=True, slots=True, eq=False)
class LengthGroups:
    """All segments of a pass. back: the index of each flat token of the pass among the groups' tokens; None: the same."""

    groups: tuple[Group, ...]
    back: Int[Tensor, "token"] | None

    @classmethod
    def of(cls, segments: Iterable[Segment], device: torch.device) -> "LengthGroups":
        """Sorts segments into groups, short ones first."""
        members: list[list[Segment]] = []
        for segment in sorted(segments, key=lambda s: (s.first > 0, s.length > 1, s.last_position, s.length)):
            if not members or not _alike(members[-1], segment):
                members.append([])
            members[-1].append(segment)
        groups = tuple(Group(tuple(found), device) for found in members)
        if len(groups) == 1 and len(groups[0].segments) == 1:
            return cls(groups, None)
        flat = [0] * sum(segment.length for group in groups for segment in group.segments)
        offset = 0
        for group in groups:
            for segment in group.segments:
                flat[segment.start : segment.end] = range(offset, offset + segment.length)
                offset += group.longest
        return cls(groups, torch.tensor(flat, device=device))

    def restored(
        self, parts: list[Float[Tensor, "segment head longest head_dim"]]
    ) -> Float[Tensor, "1 head token head_dim"]:
        """Returns the groups' results as flat tokens of the pass, in its order."""
        if self.back is None:
            return parts[0]
        flat = [part.transpose(0, 1).reshape(part.shape[1], -1, part.shape[3]) for part in parts]
        together = flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)
        return together.index_select(1, self.back).unsqueeze(0)


def _alike(group: list[Segment], segment: Segment) -> bool:
    """Whether a segment, whose past is not shorter than those of the group, may be padded together with them."""
    lengths = [one.length for one in (*group, segment)]
    uneven = UNEVEN_DECODE if max(lengths) == 1 else UNEVEN
    return (
        (group[0].first > 0) == (segment.first > 0)
        and segment.last_position + 1 <= uneven * (group[0].last_position + 1)
        and max(lengths) <= UNEVEN * min(lengths)
    )
