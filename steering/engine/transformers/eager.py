"""EagerExecutor: calls the model under its hooks. Always available, and the reference for compiled passes."""

from typing import Any

import torch

from steering.engine.transformers.attention import AttentionPatch, PagedAttention
from steering.engine.transformers.executor import Install, ModelParts, PreparedPass, SamplingKernel
from steering.model.hooks import StopForward
from steering.shapes import Logits, Tensor


class EagerExecutor:
    """Implements PassExecutor on any device. It patches the model's attention until it is closed.

    attention: None for a model that builds its own masks.
    """

    def __init__(self, parts: ModelParts) -> None:
        self.name, self.batch_invariant = "eager", False
        self.sampling_kernel: SamplingKernel | None = None
        self._parts = parts
        self.attention = None if parts.layout.attention == "own" else PagedAttention(parts.cache)
        self._patch = None if self.attention is None else AttentionPatch(parts.model, self.attention.attended)

    def start(self, install: Install) -> None:
        """See PassExecutor.start. Nothing is prepared in the background."""

    def run(self, prepared: PreparedPass) -> Logits | None:
        """See PassExecutor.run."""
        batch, parts = prepared.batch, self._parts
        rows = 1 if self.attention is not None else len(batch.segments)
        arguments: dict[str, Any] = {
            "input_ids": batch.token_ids.view(rows, -1),
            "use_cache": True,
            parts.layout.cache_argument: parts.cache,
        }
        if self.attention is None:
            filled = batch.segments[0].last_position + 1
            arguments["attention_mask"] = torch.ones(rows, filled, dtype=torch.int64, device=batch.token_ids.device)
        else:
            arguments["position_ids"] = batch.positions.view(rows, -1)
        # a keep index counts the tokens of a row; for several rows it is applied to the logits of all tokens
        arguments["logits_to_keep"] = prepared.keep if rows == 1 else 0
        parts.cache.batch = batch
        try:
            with torch.no_grad(), parts.hooks.step(prepared.on_layer, sorted(prepared.layers)):
                output = parts.model(**arguments)
        except StopForward:
            return None
        finally:
            parts.cache.batch = None
        logits: Tensor = output.logits.flatten(0, 1)
        return logits if rows == 1 else logits[prepared.keep]

    def close(self) -> None:
        """See PassExecutor.close."""
        if self._patch is not None:
            self._patch.close()
