"""LengthGroups: the segments of a packed pass in groups of about equal length, each padded to one batched attention."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from steering.engine.transformers.segment import Segment
from steering.shapes import Bool, Float, Int, Tensor

UNEVEN = 1.5
"""A group's segments are at most that many times as long as its shortest: padding costs, and so does every group."""


@dataclass(slots=True, eq=False)
class Group:
    """Segments side by side, padded on the right with repetitions of their last row, which nobody sees.

    fresh: all begin at position 0, so that what they see are rows of this pass; otherwise it lies in the slots.
    """

    segments: tuple[Segment, ...]
    device: torch.device
    _there: Int[Tensor, "padded"] | None = None
    _masks: dict[int | None, Tensor | None] = field(default_factory=dict)

    @property
    def fresh(self) -> bool:
        return self.segments[0].first == 0

    @property
    def longest(self) -> int:
        """Rows of the longest segment."""
        return max(segment.length for segment in self.segments)

    @property
    def filled(self) -> int:
        """Positions that the furthest segment sees."""
        return max(segment.last_position for segment in self.segments) + 1

    def rows(self, states: Float[Tensor, "1 head token head_dim"]) -> Float[Tensor, "segment head longest head_dim"]:
        """The rows of each segment; a view where there is only one."""
        first = self.segments[0]
        if len(self.segments) == 1:
            return states[:, :, first.start : first.end]
        if self._there is None:
            flat = [min(s.start + n, s.end - 1) for s in self.segments for n in range(self.longest)]
            self._there = torch.tensor(flat, device=self.device)
        rows = states[0].index_select(1, self._there)
        return rows.view(states.shape[1], len(self.segments), -1, states.shape[3]).transpose(0, 1)

    def past(
        self, states: Float[Tensor, "slot head position head_dim"]
    ) -> Float[Tensor, "segment head filled head_dim"]:
        """What lies in each segment's slot, the rows of this pass included; a view where there is only one."""
        slots = [segment.sequence.slot for segment in self.segments]
        if len(slots) == 1:
            return states[slots[0] : slots[0] + 1, :, : self.filled]
        return states[:, :, : self.filled].index_select(0, torch.tensor(slots, device=self.device))

    def mask(self, window: int | None, *, needed: bool = False) -> Bool[Tensor, "segment 1 longest filled"] | None:
        """Which positions each row sees; None where plain causality says it (unless a mask is needed all the same)."""
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
    """All segments of a pass. back: where each flat row of the pass lies in the groups' rows laid end to end; None: there
    already."""

    groups: tuple[Group, ...]
    back: Int[Tensor, "token"] | None

    @classmethod
    def of(cls, segments: Iterable[Segment], device: torch.device) -> "LengthGroups":
        """Sorted into groups, short ones first."""
        members: list[list[Segment]] = []
        for segment in sorted(segments, key=lambda s: (s.first > 0, s.last_position, s.length)):
            if not members or not _alike(members[-1], segment):
                members.append([])
            members[-1].append(segment)
        groups = tuple(Group(tuple(found), device) for found in members)
        if len(groups) == 1 and len(groups[0].segments) == 1:
            return cls(groups, None)
        places = [0] * sum(segment.length for group in groups for segment in group.segments)
        offset = 0
        for group in groups:
            for segment in group.segments:
                places[segment.start : segment.end] = range(offset, offset + segment.length)
                offset += group.longest
        return cls(groups, torch.tensor(places, device=device))

    def restored(
        self, parts: list[Float[Tensor, "segment head longest head_dim"]]
    ) -> Float[Tensor, "1 head token head_dim"]:
        """The groups' results as flat rows of the pass, in its order."""
        if self.back is None:
            return parts[0]
        flat = [part.transpose(0, 1).reshape(part.shape[1], -1, part.shape[3]) for part in parts]
        together = flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)
        return together.index_select(1, self.back).unsqueeze(0)


def _alike(group: list[Segment], segment: Segment) -> bool:
    """Whether a segment, not further than those before it are far, may be padded together with them."""
    lengths = [one.length for one in (*group, segment)]
    return (
        (group[0].first > 0) == (segment.first > 0)
        and segment.last_position + 1 <= UNEVEN * (group[0].last_position + 1)
        and max(lengths) <= UNEVEN * min(lengths)
    )
