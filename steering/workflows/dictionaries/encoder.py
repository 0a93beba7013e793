"""Encoder: computes how active the features of a sparse autoencoder are at residuals."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from steering.shapes import Float, Residual, Tensor

MAX_ACTIVATIONS = 1 << 24
"""Activations of features that are computed at a time, 64 MB in float32. A longer text is read in pieces."""


@dataclass(frozen=True, slots=True, eq=False)
class Encoder:
    """The weights of an encoder, in float32, read once for many texts.

    centre: what is subtracted from a residual first, None for nothing. threshold: of a jumprelu autoencoder. k: active features
    of a topk autoencoder.
    """

    architecture: str
    weight: Float[Tensor, "d_model feature"]
    bias: Float[Tensor, "feature"]
    centre: Float[Tensor, "d_model"] | None = None
    threshold: Float[Tensor, "feature"] | None = None
    k: int = 0

    def encode(self, residual: Residual) -> Float[Tensor, "token feature"]:
        """residual (token, d_model) -> the activation of every feature, 0 where it is not active."""
        rows = residual.float() if self.centre is None else residual.float() - self.centre
        before = rows @ self.weight + self.bias
        if self.architecture == "topk":
            kept = before.topk(min(self.k, before.shape[1]), dim=-1)
            return torch.zeros_like(before).scatter_(-1, kept.indices, kept.values.relu())
        if self.threshold is not None:
            return before * (before > self.threshold)
        return before.relu()

    def pieces(self, residual: Residual, limit: int = MAX_ACTIVATIONS) -> Iterator[Float[Tensor, "piece feature"]]:
        """Yields what `encode` returns in pieces of at most `limit` numbers, but of one token at least."""
        for rows in torch.split(residual, max(limit // len(self.bias), 1)):
            yield self.encode(rows)

    def total(self, residual: Residual) -> Float[Tensor, "feature"]:
        """residual (token, d_model) -> the sum of every feature's activations, one piece of them held at a time."""
        total = torch.zeros(len(self.bias))
        for piece in self.pieces(residual):
            total += piece.sum(0)
        return total
