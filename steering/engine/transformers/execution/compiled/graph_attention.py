"""Attention of compiled passes, whose graphs take keys and values of all slots as inputs and write them in place."""

import torch

from steering.engine.transformers.attention.masked import AttentionFunction, Scores, grouped
from steering.engine.transformers.batch import seen_by
from steering.engine.transformers.execution.compiled.callbacks import attend
from steering.engine.transformers.execution.kernels.operations import attend_rows, attend_segments
from steering.engine.transformers.execution.kernels.processor import attends_slots
from steering.shapes import Bool, Float, Int, Tensor

States = list[Float[Tensor, "slot kv_head position head_dim"]]
"""One a layer."""


class RowAttention(AttentionFunction):
    """Decoding: one token a row, row r in slot r."""

    def begin(self, positions: Int[Tensor, "row"], span: Int[Tensor, "length"], keys: States, values: States) -> None:
        """A pass begins. Its rows are at `positions` and look back over at most `span` positions."""
        self._positions, self._span, self._keys, self._values = positions, span, keys, values
        self._masks: dict[int | None, Tensor] = {}

    def attended(
        self, layer: int, query: Float[Tensor, "row head query head_dim"], key: Tensor, value: Tensor, scores: Scores
    ) -> Float[Tensor, "row head query head_dim"]:
        """See AttentionFunction."""
        keys, values = self._keys[layer], self._values[layer]
        if attends_slots(query, value):
            return attend_rows(query, key, value, keys, values, self._positions, *scores).transpose(1, 2)
        rows, length = query.shape[0], self._span.shape[0]
        slots = torch.arange(rows, device=query.device)
        keys[slots, :, self._positions] = key[:, :, 0]
        values[slots, :, self._positions] = value[:, :, 0]
        return grouped(query, keys[:rows, :, :length], values[:rows, :, :length], self._mask(scores.window), scores)

    def _mask(self, window: int | None) -> Bool[Tensor, "row 1 1 length"]:
        """Which cached positions each row sees."""
        if window not in self._masks:
            self._masks[window] = seen_by(self._positions, self._span, window)
        return self._masks[window]


class SegmentAttention(AttentionFunction):
    """Pieces of prompts, one after the other in one row. Without a kernel for them the graph calls back."""

    def begin(
        self, segments: Int[Tensor, "segment 4"], loans: Int[Tensor, "loan 3"], keys: States, values: States
    ) -> None:
        """A pass begins. segments, loans: see `attend_segments`."""
        self._segments, self._loans, self._keys, self._values = segments, loans, keys, values

    def attended(
        self, layer: int, query: Float[Tensor, "row head query head_dim"], key: Tensor, value: Tensor, scores: Scores
    ) -> Float[Tensor, "row head query head_dim"]:
        """See AttentionFunction."""
        if not attends_slots(query, value):
            return attend(query, key, value, layer, *scores).transpose(1, 2)
        states = self._keys[layer], self._values[layer]
        return attend_segments(query, key, value, *states, self._segments, self._loans, *scores).transpose(1, 2)
