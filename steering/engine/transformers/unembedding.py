"""Embeds token ids and unembeds residuals, with the model's own first and last modules."""

from collections.abc import Generator
from typing import Any

import torch

from steering.errors import InvalidRequest
from steering.model.hook_points import BlockOutput, residual_of, with_residual
from steering.model.layout import Layout
from steering.shapes import Float, Residual, Tensor
from steering.uploads import uploaded


class Unembedding:
    """The two ends of the residual stream, for the thread that owns the model."""

    def __init__(self, model: Any, layout: Layout) -> None:
        self.model, self.layout = model, layout

    def embed(self, ids: tuple[int, ...]) -> Float[Tensor, "token d_model"]:
        """Returns input embeddings, before positions are added; float32, on the host."""
        table = self.layout.embedding
        with torch.no_grad():
            rows: Tensor = table(uploaded(ids, next(table.parameters()).device))
        return rows.to(torch.float32).cpu()

    def unembedding(self, residual: Tensor, piece: int) -> Generator[None, None, Float[Tensor, "token vocab"]]:
        """Computes logits of residuals, `piece` of them at a time; float32, on the host.

        Raises InvalidRequest for residuals of another width.
        """
        if residual.ndim != 2 or residual.shape[1] != self.layout.d_model:
            raise InvalidRequest(
                f"residuals must be (token, {self.layout.d_model}), got {tuple(residual.shape)}", param="residual"
            )
        logits = [torch.empty(0, self.layout.vocab_size)]
        for number, rows in enumerate(torch.split(residual, piece)):
            if number:
                yield
            with torch.no_grad():
                logits.append(self.logits(rows).to(torch.float32).cpu())
        return torch.cat(logits)

    def logits(self, residual: Residual) -> Float[Tensor, "token vocab"]:
        """Returns logits of residuals after the last block, on the model's device; differentiable.

        What follows the last block (norm, head, scaling, capping) is the model's own code: it runs a pass over one token
        in which the residuals replace the output of the last block.
        """

        def replace(_block: Any, _arguments: Any, output: BlockOutput) -> BlockOutput:
            return with_residual(output, residual.to(residual_of(output))[None])

        device = next(self.layout.embedding.parameters()).device
        handle = self.layout.blocks[-1].register_forward_hook(replace)
        try:
            output = self.model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=device), use_cache=False)
        finally:
            handle.remove()
        logits: Tensor = output.logits  # some architectures return the tokens as rows of a batch
        return logits.reshape(len(residual), logits.shape[-1])
