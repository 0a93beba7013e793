"""Unembedding: the two ends of the residual stream: what a token brings into it, and which token a residual would become."""

from collections.abc import Generator
from typing import Any

import torch

from steering.errors import InvalidRequest
from steering.model.layout import BlockOutput, Layout, residual_of, with_residual
from steering.shapes import Float, Residual, Tensor


class Unembedding:
    """For the thread that owns the model. What lies after the last block is the model's own code: its norm, its head, and
    whatever scaling or capping of logits the architecture has."""

    def __init__(self, model: Any, layout: Layout) -> None:
        self._model, self._layout = model, layout

    def embed(self, ids: tuple[int, ...]) -> Float[Tensor, "token d_model"]:
        """Input embeddings, before positions are added; float32, on the host."""
        table = self._layout.embedding
        with torch.no_grad():
            rows: Tensor = table(torch.tensor(ids, device=next(table.parameters()).device))
        return rows.to(torch.float32).cpu()

    def unembedding(self, residual: Residual, piece: int) -> Generator[None, None, Float[Tensor, "token vocab"]]:
        """Logits of residuals, `piece` of them a turn; float32, on the host. Raises InvalidRequest for another width."""
        if residual.ndim != 2 or residual.shape[1] != self._layout.d_model:
            raise InvalidRequest(
                f"residuals must be (token, {self._layout.d_model}), got {tuple(residual.shape)}", param="residual"
            )
        logits = [torch.empty(0, self._layout.vocab_size)]
        for number, rows in enumerate(torch.split(residual, piece)):
            if number:
                yield
            logits.append(self._logits(rows))
        return torch.cat(logits)

    def _logits(self, residual: Residual) -> Float[Tensor, "token vocab"]:
        """A pass over one token, whose residual after the last block gives way to ours: the head goes on with those."""

        def instead(_block: Any, _arguments: Any, output: BlockOutput) -> BlockOutput:
            return with_residual(output, residual.to(residual_of(output))[None])

        device = next(self._layout.embedding.parameters()).device
        handle = self._layout.blocks[-1].register_forward_hook(instead)
        try:
            with torch.no_grad():
                output = self._model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=device), use_cache=False)
        finally:
            handle.remove()
        logits: Tensor = output.logits  # some architectures make the tokens of ours rows of a batch
        return logits.reshape(len(residual), logits.shape[-1]).to(torch.float32).cpu()
