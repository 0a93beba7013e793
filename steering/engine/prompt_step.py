"""PromptStep: one pass over pieces of prompts as a function of tensors, so that it can be exported and compiled."""

from typing import Any

import torch

from steering.engine.attachment import Attachment
from steering.engine.graph_calls import attend, visited
from steering.engine.packed_linears import PackedLinears
from steering.model.hooks import ResidualHooks
from steering.model.layout import Layout
from steering.shapes import Float, Int, Tensor


class PromptStep(torch.nn.Module):
    """The model under its hooks, many tokens in one row. How they attend to each other differs from pass to pass, and so
    does what steers them: the graph calls `attend` and `visit` for both, and fuses what lies between. linears: see
    DecodeStep.
    """

    def __init__(self, model: Any, layout: Layout, linears: PackedLinears | None) -> None:
        super().__init__()
        self.model = model
        self._layout, self._linears = layout, linears
        self._attachment = Attachment(model, _attention)
        self._hooks = ResidualHooks(layout)

    def close(self) -> None:
        self._hooks.remove()
        self._attachment.close()

    def forward(
        self,
        token_ids: Int[Tensor, "token"],
        positions: Int[Tensor, "token"],
        keep: Int[Tensor, "kept"],
        weights: list[Tensor],
    ) -> tuple[Float[Tensor, "kept vocab"]]:
        """The logits of the tokens in `keep`."""
        if self._linears is not None:
            self._linears.weights = weights
        with self._hooks.step(visited):
            output = self.model(
                input_ids=token_ids[None], position_ids=positions[None], use_cache=False, logits_to_keep=keep
            )
        return (output.logits[0],)

    def example(self) -> tuple[Any, ...]:
        """Arguments to trace with. No two free sizes are equal, or the tracer would take them for one."""
        device = next(self.model.parameters()).device
        ids = torch.arange(1, 8, device=device)
        weights = [] if self._linears is None else self._linears.weights
        return ids, ids + 3, torch.tensor([2, 3, 6], device=device), weights

    def dynamic_shapes(self) -> tuple[Any, ...]:
        """Tokens and kept tokens are free: one graph serves every pass."""
        free = torch.export.Dim.AUTO
        weights: list[dict[int, Any]] = [] if self._linears is None else [{} for _ in self._linears.weights]
        return {0: free}, {0: free}, {0: free}, weights


def _attention(  # noqa: PLR0913, PLR0917 - the signature is transformers'
    module: torch.nn.Module,
    query: Float[Tensor, "row head token head_dim"],
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001 - masks are the batch's
    scaling: float | None = None,
    dropout: float = 0.0,  # noqa: ARG001 - never in inference
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Float[Tensor, "row token head head_dim"], None]:
    """Written into the graph as one call."""
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer: int = module.layer_idx  # type: ignore[assignment]  # torch types attributes of modules as tensors
    return attend(query, key, value, layer, scaling, sliding_window, softcap), None
