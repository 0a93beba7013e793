"""CompiledPasses: the passes of an engine that run through graphs compiled ahead of time, as they become ready."""

from collections.abc import Collection

import torch

from steering.engine.transformers.attention.masked import SlotAttention
from steering.engine.transformers.batch import Batch
from steering.engine.transformers.execution.compiled.callbacks import HookCallback, answering
from steering.engine.transformers.execution.compiled.graph_bank import tasks
from steering.engine.transformers.execution.kernels.library import Compiled
from steering.engine.transformers.memory.slot_cache import SlotCache
from steering.engine.transformers.steering.bank import SteeringBank
from steering.engine.transformers.steering.steering_batch import SteeringBatch
from steering.shapes import Int, Logits, Tensor

KINDS = ("decode", "prompt")


class CompiledPasses:
    """Each kind of pass, as a graph that is the same for every batch. A kind that is not ready is run eager by the caller."""

    def __init__(self, layer_count: int, cache: SlotCache, attention: SlotAttention | None, bank: SteeringBank) -> None:
        self._layer_count, self._cache, self._attention, self._bank = layer_count, cache, attention, bank
        self._spans: dict[int, Tensor] = {}
        self.weights: list[Tensor] = []
        self.ready: dict[str, Compiled] = {}

    def worth(self, stop_after: int | None) -> bool:
        """Whether to compute prompts by the graph: it always goes through all layers, at about half the cost of each."""
        deep = stop_after is None or 2 * (stop_after + 1) > self._layer_count
        return deep and "prompt" in self.ready and self._cache.begun

    def prompt(
        self,
        batch: Batch,
        steering: SteeringBatch,
        visits: Collection[int],
        visitor: HookCallback,
        keep: Int[Tensor, "kept"],
    ) -> Logits:
        """A packed pass; logits of the tokens in `keep`. visits: after which layers the visitor is called; after others of
        `steering` the graph adds the bank's rows."""
        assert self._attention is not None
        self._cache.batch = batch
        arguments = [batch.token_ids, batch.positions, keep, batch.table(), batch.loan_table()]
        try:
            with answering(visitor, self._attention.write_and_attend):
                return self._run("prompt", arguments, steering, visits)
        finally:
            self._cache.batch = None

    def decode(self, batch: Batch, steering: SteeringBatch, visits: Collection[int], visitor: HookCallback) -> Logits:
        """A token for every row; see `prompt`."""
        device = batch.token_ids.device
        span = self._spans.setdefault(batch.length, torch.arange(batch.length, device=device))
        with answering(visitor):
            return self._run("decode", [batch.token_ids, batch.positions, span], steering, visits)

    def _run(self, kind: str, arguments: list[Tensor], steering: SteeringBatch, visits: Collection[int]) -> Logits:
        """arguments: those of the graph before the bank, one number a token in the first."""
        visits = frozenset(visits)
        adds = steering.static_layers - visits
        bank = [
            self._bank.static_adds,
            steering.row_indices,
            steering.static_sums,
            tasks(self._layer_count, visits, adds),
        ]
        with torch.no_grad():
            (logits,) = self.ready[kind]([*arguments, *bank, *self._states(), *self.weights])
        return logits

    def _states(self) -> list[Tensor]:
        """Keys of all layers, then values of all."""
        return [layer.keys for layer in self._cache.layers] + [layer.values for layer in self._cache.layers]
