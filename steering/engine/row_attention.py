"""RowAttention: attention of a compiled decode pass, whose graph takes keys and values of all slots as its inputs."""

from typing import Any

import torch

from steering.engine.attention import Scores, grouped
from steering.native.operations import attend_rows
from steering.native.processor import attends_slots
from steering.shapes import Bool, Float, Int, Tensor


class RowAttention:
    """One token a row, row r in slot r. It writes keys and values itself, so that the model needs no cache object."""

    def begin(
        self,
        positions: Int[Tensor, "row"],
        span: Int[Tensor, "length"],
        keys: list[Float[Tensor, "slot kv_head position head_dim"]],
        values: list[Float[Tensor, "slot kv_head position head_dim"]],
    ) -> None:
        """A pass begins. Its rows are at `positions` and look back over at most `span` positions."""
        self._positions, self._span, self._keys, self._values = positions, span, keys, values
        self._masks: dict[int | None, Tensor] = {}

    def __call__(  # noqa: PLR0913, PLR0917 - the signature is transformers'
        self,
        module: torch.nn.Module,
        query: Float[Tensor, "row head 1 head_dim"],
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,  # noqa: ARG002 - rows see what is in their slots
        scaling: float | None = None,
        dropout: float = 0.0,  # noqa: ARG002 - never in inference
        sliding_window: int | None = None,
        softcap: float | None = None,
        **_: Any,
    ) -> tuple[Float[Tensor, "row 1 head head_dim"], None]:
        """query (row, head, 1, head_dim) -> (row, 1, head, head_dim)."""
        scores = Scores(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window, softcap)
        layer: int = module.layer_idx  # type: ignore[assignment]  # torch types attributes of modules as tensors
        keys, values = self._keys[layer], self._values[layer]
        if attends_slots(query, value):
            return attend_rows(query, key, value, keys, values, self._positions, *scores), None
        rows, length = query.shape[0], self._span.shape[0]
        slots = torch.arange(rows, device=query.device)
        keys[slots, :, self._positions] = key[:, :, 0]
        values[slots, :, self._positions] = value[:, :, 0]
        seen = keys[:rows, :, :length], values[:rows, :, :length]
        return grouped(query, *seen, self._mask(sliding_window), scores).transpose(1, 2), None

    def _mask(self, window: int | None) -> Bool[Tensor, "row 1 1 length"]:
        """Which cached positions each row sees."""
        if window not in self._masks:
            self._masks[window] = seen_by(self._positions, self._span, window)
        return self._masks[window]


def seen_by(
    positions: Int[Tensor, "row"], span: Int[Tensor, "length"], window: int | None
) -> Bool[Tensor, "row 1 1 length"]:
    """Which of the first `length` positions a token at each of `positions` sees."""
    seen = span <= positions[:, None]
    if window is not None:
        seen = seen & (span > positions[:, None] - window)
    return seen[:, None, None, :]
