"""CompiledPasses: the passes of an engine that run through graphs compiled ahead of time, as they become ready."""

import torch

from steering.engine.additive_bank import AdditiveBank
from steering.engine.attention import SlotAttention
from steering.engine.batch import Batch
from steering.engine.graph_calls import Visitor, answering
from steering.engine.kv_cache import SlotCache
from steering.native.library import Compiled
from steering.plan import Phase
from steering.shapes import Int, Logits, Tensor

KINDS = ("additive", "visited", "prompt")
"""additive: decoding, bank rows inside the graph; visited: decoding under any steering; prompt: pieces of prompts."""


class CompiledPasses:
    """Each kind of pass, as a graph that is the same for every batch. A kind that is not ready is run eager by the caller."""

    def __init__(self, layer_count: int, cache: SlotCache, attention: SlotAttention | None, bank: AdditiveBank) -> None:
        self._layer_count, self._cache, self._attention, self._bank = layer_count, cache, attention, bank
        self._spans: dict[int, Tensor] = {}
        self.weights: list[Tensor] = []
        self.ready: dict[str, Compiled] = {}

    def worth(self, stop_after: int | None) -> bool:
        """Whether to compute prompts by the graph: it always goes through all layers, at about half the cost of each."""
        return "prompt" in self.ready and (stop_after is None or 2 * (stop_after + 1) > self._layer_count)

    def prompt(self, batch: Batch, visitor: Visitor, keep: Int[Tensor, "kept"]) -> Logits:
        """A packed pass; logits of the tokens in `keep`."""
        assert self._attention is not None
        self._cache.batch = batch
        try:
            with torch.no_grad(), answering(visitor, self._attention.write_and_attend):
                (logits,) = self.ready["prompt"]([batch.token_ids, batch.positions, keep, *self.weights])
        finally:
            self._cache.batch = None
        return logits

    def decode(self, kind: str, batch: Batch, visitor: Visitor) -> Logits:
        """A token for every row."""
        keys = [layer.keys for layer in self._cache.layers]
        values = [layer.values for layer in self._cache.layers]
        device = batch.token_ids.device
        span = self._spans.setdefault(batch.length, torch.arange(batch.length, device=device))
        rows = self._bank.rows[Phase.GENERATED]
        with torch.no_grad(), answering(visitor):
            logits, inverse = self.ready[kind]([batch.token_ids, batch.positions, span, rows, *keys, *values, *self.weights])
        if inverse.numel():
            self._bank.inverse[Phase.GENERATED, :, : batch.tokens] += inverse
        return logits
