"""StaticRows: the static adds of a pass, gathered for all its layers at once, for an engine that adds them to a stream of its own.

Passes of decode tokens repeat with the same requests, so the rows are gathered once for many passes. A layer then costs three
small operations in place of about ten, and the norms of all layers are taken together after the pass.
"""

from collections.abc import Iterable

import torch

from steering.engine.transformers.steering.bank import SteeringBank, norms_of
from steering.shapes import Float, Int, Tensor

MAX_NUMBERS = 1 << 24
"""float32 numbers of all rows of a pass, 64 MB. A pass with more of them, which reads prompts, gathers layer by layer."""


class StaticRows:
    """The rows of some layers for the tokens of a pass."""

    def __init__(
        self, bank: SteeringBank, layers: Iterable[int], indices: Int[Tensor, "token"], dtype: torch.dtype
    ) -> None:
        """indices: see `SteeringBank.row_indices`. dtype: of the stream that they are added to."""
        self.layers = tuple(sorted(layers))
        self._rows = {layer: bank.rows_at(layer, indices).to(dtype) for layer in self.layers}
        width = bank.static_adds.shape[-1]
        self._streams = torch.zeros(len(self.layers), len(indices), width, device=indices.device)
        self._stream_of = dict(zip(self.layers, self._streams.unbind(0), strict=True))
        self._indices = torch.tensor(self.layers, dtype=torch.int64, device=indices.device)  # once, for all passes

    def add(self, layer: int, hidden: Float[Tensor, "token d_model"], residual: Tensor | None) -> None:
        """Adds the rows of a layer to the stream hidden (+ residual) by changing `hidden` in place."""
        stream = self._stream_of[layer]
        stream.copy_(hidden)
        if residual is not None:
            stream += residual
        hidden += self._rows[layer]

    def measure(self, sums: Float[Tensor, "layer token"]) -> None:
        """After a pass: adds the 1 / |r| that the rows found at each layer and token to the sums of all layers."""
        norms = norms_of(self._streams.flatten(0, 1)).view(self._streams.shape[:2])
        sums[self._indices] += norms.reciprocal()


def fits(tokens: int, layers: int, d_model: int) -> bool:
    """Whether the rows of so many layers are gathered at once."""
    return tokens * layers * d_model <= MAX_NUMBERS
