"""CompiledPasses: the passes of an engine that run through graphs compiled ahead of time, as they become ready."""

from collections.abc import Collection

import torch

from steering.engine.additive_bank import AdditiveBank
from steering.engine.attention import SlotAttention
from steering.engine.batch import Batch
from steering.engine.graph_calls import Task, Visitor, answering
from steering.engine.kv_cache import SlotCache
from steering.native.library import Compiled
from steering.plan import Phase
from steering.shapes import Int, Logits, Tensor

KINDS = ("decode", "prompt")


class CompiledPasses:
    """Each kind of pass, as a graph that is the same for every batch. A kind that is not ready is run eager by the caller."""

    def __init__(self, layer_count: int, cache: SlotCache, attention: SlotAttention | None, bank: AdditiveBank) -> None:
        self._layer_count, self._cache, self._attention, self._bank = layer_count, cache, attention, bank
        self._spans: dict[int, Tensor] = {}
        self.weights: list[Tensor] = []
        self.ready: dict[str, Compiled] = {}

    def worth(self, stop_after: int | None) -> bool:
        """Whether to compute prompts by the graph: it always goes through all layers, at about half the cost of each."""
        deep = stop_after is None or 2 * (stop_after + 1) > self._layer_count
        return deep and "prompt" in self.ready and self._cache.begun

    def prompt(self, batch: Batch, visits: Collection[int], visitor: Visitor, keep: Int[Tensor, "kept"]) -> Logits:
        """A packed pass that is visited after some layers; logits of the tokens in `keep`."""
        assert self._attention is not None
        self._cache.batch = batch
        arguments = [batch.token_ids, batch.positions, keep, *self._steering(visits, ())]
        try:
            with torch.no_grad(), answering(visitor, self._attention.write_and_attend):
                (logits,) = self.ready["prompt"](
                    [*arguments, batch.table(), batch.loan_table(), *self._states(), *self.weights]
                )
        finally:
            self._cache.batch = None
        return logits

    def decode(self, batch: Batch, visits: Collection[int], adds: Collection[int], visitor: Visitor) -> Logits:
        """A token for every row: visited after some layers, with the bank's rows added after others."""
        device = batch.token_ids.device
        span = self._spans.setdefault(batch.length, torch.arange(batch.length, device=device))
        arguments = [batch.token_ids, batch.positions, span, *self._steering(visits, adds)]
        with torch.no_grad(), answering(visitor):
            (logits,) = self.ready["decode"]([*arguments, *self._states(), *self.weights])
        return logits

    def _steering(self, visits: Collection[int], adds: Collection[int]) -> tuple[Tensor, Tensor, Tensor]:
        """What `steer` takes: a visit adds the bank's rows itself."""
        tasks = [
            Task.VISIT if layer in visits else Task.ADD if layer in adds else Task.NOTHING
            for layer in range(self._layer_count)
        ]
        return self._bank.rows[Phase.GENERATED], self._bank.inverse[Phase.GENERATED], torch.tensor(tasks)

    def _states(self) -> list[Tensor]:
        """Keys of all layers, then values of all."""
        return [layer.keys for layer in self._cache.layers] + [layer.values for layer in self._cache.layers]
