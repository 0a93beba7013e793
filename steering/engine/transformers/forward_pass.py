"""ForwardPass: one eager pass of the model under its hooks, over tensors and the slots they belong to."""

from collections.abc import Collection
from typing import Any

import torch

from steering.engine.transformers.batch import Batch
from steering.engine.transformers.execution.compiled.callbacks import HookCallback
from steering.engine.transformers.memory.slot_cache import SlotCache
from steering.model.hooks import ResidualHooks, StopForward
from steering.model.layout import Layout
from steering.shapes import Int, Logits, Tensor


class ForwardPass:
    """How every eager pass over slots calls the model. (Compiled graphs hold a copy of what it does.)"""

    def __init__(self, model: Any, layout: Layout, hooks: ResidualHooks, cache: SlotCache) -> None:
        self._model, self._hooks, self._cache = model, hooks, cache
        self._own, self._cache_argument = layout.attention == "own", layout.cache_argument

    def run(
        self, batch: Batch, visitor: HookCallback, layers: Collection[int], keep: Int[Tensor, "kept"] | int
    ) -> Logits | None:
        """Logits of the positions in `keep` (a number: of so many last ones in each row). The visitor is called after these
        layers; None when it stopped the pass."""
        shape = (-1, 1) if batch.decode else (1, -1)
        arguments: dict[str, Any] = {
            "input_ids": batch.token_ids.view(shape),
            "use_cache": True,
            "logits_to_keep": keep,
            self._cache_argument: self._cache,
        }
        if self._own:
            filled = batch.segments[0].last_position + 1
            arguments["attention_mask"] = torch.ones(1, filled, dtype=torch.int64, device=batch.token_ids.device)
        else:
            arguments["position_ids"] = batch.positions.view(shape)
        self._cache.batch = batch
        try:
            with torch.no_grad(), self._hooks.step(visitor, sorted(layers)):
                output = self._model(**arguments)
        except StopForward:
            return None
        finally:
            self._cache.batch = None
        logits: Tensor = output.logits
        return logits.reshape(-1, logits.shape[-1])
