"""Segments laid side by side come back in their places, and each sees what it would see alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steering.engine.api import SamplingParams
from steering.engine.transformers.attention.length_groups import UNEVEN, LengthGroups
from steering.engine.transformers.attention.masked import Scores, masked
from steering.engine.transformers.segment import Segment
from steering.engine.transformers.sequence import Sequence, Stream
from steering.plan.types import UNSTEERED

HEADS, WIDTH = 2, 4
DEVICE = torch.device("cpu")
pieces = st.lists(st.tuples(st.sampled_from([0, 0, 1, 7, 30]), st.integers(1, 40)), min_size=1, max_size=12)


def segments(pieces: list[tuple[int, int]]) -> list[Segment]:
    """(first, length) each -> segments packed in that order, slot n for the n-th."""
    found: list[Segment] = []
    stream: Stream = None  # type: ignore[assignment]  # nothing is sent
    for slot, (first, length) in enumerate(pieces):
        ids = [0] * (first + length)
        sequence = Sequence(slot, ids, len(ids), UNSTEERED, SamplingParams(), stream, slot=slot)
        start = found[-1].end if found else 0
        found.append(Segment(sequence, first, start, start + length))
    return found


@given(pieces)
def test_rows_come_back_in_their_places(pieces: list[tuple[int, int]]) -> None:
    packed = segments(pieces)
    states = torch.randn(1, HEADS, packed[-1].end, WIDTH)
    beside = LengthGroups.of(packed, DEVICE)
    assert torch.equal(beside.restored([group.rows(states) for group in beside.groups]), states)
    assert sum(len(group.segments) for group in beside.groups) == len(packed)


@given(pieces)
def test_a_group_is_even(pieces: list[tuple[int, int]]) -> None:
    for group in LengthGroups.of(segments(pieces), DEVICE).groups:
        lengths = [segment.length for segment in group.segments]
        assert max(lengths) <= UNEVEN * min(lengths)
        assert len({segment.first == 0 for segment in group.segments}) == 1


@given(pieces, st.sampled_from([None, 3, 20]))
def test_each_sees_what_it_would_alone(pieces: list[tuple[int, int]], window: int | None) -> None:
    packed = segments(pieces)
    capacity = max(first + length for first, length in pieces)
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, HEADS, packed[-1].end, WIDTH, generator=generator)
    keys, values = torch.randn(2, len(packed), HEADS, capacity, WIDTH, generator=generator).unbind()
    flat_keys = torch.cat([keys[n, :, s.first : s.last_position + 1] for n, s in enumerate(packed)], dim=1)[None]
    flat_values = torch.cat([values[n, :, s.first : s.last_position + 1] for n, s in enumerate(packed)], dim=1)[None]
    beside = LengthGroups.of(packed, DEVICE)
    parts = []
    for group in beside.groups:
        past = (
            (group.rows(flat_keys), group.rows(flat_values)) if group.fresh else (group.past(keys), group.past(values))
        )
        parts.append(masked(group.rows(query), *past, group.mask(window), Scores(0.5, window, None)))
    together = beside.restored(parts)
    for slot, segment in enumerate(packed):
        for row in range(segment.length):
            at = segment.first + row
            low = 0 if window is None else max(0, at - window + 1)
            scores = 0.5 * query[0, :, segment.start + row, None] @ keys[slot, :, low : at + 1].transpose(1, 2)
            expected = (scores.softmax(-1) @ values[slot, :, low : at + 1])[:, 0]
            torch.testing.assert_close(together[0, :, segment.start + row], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("needed", [False, True])
def test_plain_causality_needs_no_mask(needed: bool) -> None:
    (group,) = LengthGroups.of(segments([(0, 5), (0, 6)]), DEVICE).groups
    assert (group.mask(None, needed=needed) is None) == (not needed)
    assert (group.mask(6, needed=needed) is None) == (not needed)
    assert group.mask(5) is not None
