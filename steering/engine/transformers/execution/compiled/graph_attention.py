"""Attention inside compiled graphs, which take the cached keys and values as inputs and write them in place."""

from steering.engine.transformers.attention.masked import AttentionFunction, Scores
from steering.engine.transformers.execution.compiled.callbacks import attention_callback
from steering.engine.transformers.execution.kernels.operations import paged_attention
from steering.shapes import Float, Int, Tensor

States = list[Float[Tensor, "kv_head slot head_dim"]]
"""One tensor per layer."""


class GraphAttention(AttentionFunction):
    """Attention of a compiled pass. kernel: whether our kernel computes it; otherwise the graph calls back."""

    def __init__(self, *, kernel: bool) -> None:
        self._kernel = kernel

    def begin(
        self,
        segments: Int[Tensor, "segment 3"],
        block_tables: Int[Tensor, "segment block"],
        keys: States,
        values: States,
    ) -> None:
        """Sets the inputs of a pass, see `paged_attention`."""
        self._segments, self._block_tables, self._keys, self._values = segments, block_tables, keys, values

    def attended(
        self, layer: int, query: Float[Tensor, "row head query head_dim"], key: Tensor, value: Tensor, scores: Scores
    ) -> Float[Tensor, "row head query head_dim"]:
        """See AttentionFunction."""
        if not self._kernel:
            return attention_callback(query, key, value, layer, *scores).transpose(1, 2)
        states = self._keys[layer], self._values[layer]
        found = paged_attention(query, key, value, *states, self._segments, self._block_tables, *scores)
        return found.transpose(1, 2)
