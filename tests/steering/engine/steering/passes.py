"""Passes over given segments, without a model: what steers them is called with residuals of the test's own."""

import torch

from steering.engine.transformers.batch import Batch, Segment
from steering.engine.transformers.sequence import Sequence


def pass_over(work: list[tuple[Sequence, int]]) -> Batch:
    """The next `count` positions of each sequence, one after the other."""
    segments: list[Segment] = []
    positions: list[int] = []
    for sequence, count in work:
        segments.append(Segment(sequence, sequence.computed, len(positions), len(positions) + count))
        positions += range(sequence.computed, sequence.computed + count)
    zeros = torch.zeros(len(positions), dtype=torch.int64)
    return Batch(segments=tuple(segments), token_ids=zeros, positions=torch.tensor(positions), slots=zeros)
