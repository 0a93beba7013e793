"""Low-rank maps: what a vector adds to a residual as a function of it, by a few read and write directions.

    r' = r + s sum_i phi(v_i . r + b_i) u_i

LoReFT, feature rows of a sparse autoencoder, conceptors, affine transport and null-space maps all have this form.
"""

from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

from steering.cards import MapForm
from steering.errors import InvalidRequest, VectorModelMismatch
from steering.shapes import Direction, Float, Tensor
from steering.spec import MAX_RANK, Activation

Rows: TypeAlias = Float[Tensor, "row d_model"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LowRankMap(MapForm):
    """A map at one layer. read (rank, d_model): v. write (rank, d_model): u. bias (rank,): b, in units of v . r. All float32."""

    read: Float[Tensor, "rank d_model"]
    write: Float[Tensor, "rank d_model"]
    bias: Float[Tensor, "rank"]

    @classmethod
    def of(
        cls, read: Tensor, write: Tensor, bias: Tensor | None = None, activation: Activation = "linear"
    ) -> "LowRankMap":
        """Builds a map from read and write (rank, d_model) in any floating type. bias (rank,): absent, zeros."""
        read, write = read.to(torch.float32), write.to(torch.float32)
        bias = torch.zeros(len(read)) if bias is None else bias.to(torch.float32)
        return cls(rank=len(read), activation=activation, read=read, write=write, bias=bias)

    def check(self, layer: int, d_model: int) -> None:
        """Raises InvalidRequest for a wrong rank, numbers or no writing, VectorModelMismatch for other shapes."""
        if not 1 <= self.rank <= MAX_RANK:
            raise InvalidRequest(f"layer {layer}: the rank of a map is 1 to {MAX_RANK}, got {self.rank}", param="maps")
        wanted = {"read": (self.rank, d_model), "write": (self.rank, d_model), "bias": (self.rank,)}
        for name, shape in wanted.items():
            values: Tensor = getattr(self, name)
            if tuple(values.shape) != shape:
                raise VectorModelMismatch(
                    f"layer {layer}: '{name}' of the map has shape {tuple(values.shape)}, expected {shape}",
                    param="maps",
                )
            if not bool(torch.isfinite(values).all()):
                raise InvalidRequest(f"layer {layer}: the numbers of the map must be finite in float32", param="maps")
        if not bool(self.write.any()):
            raise InvalidRequest(f"layer {layer}: the map writes nothing, its 'write' is all zeros", param="maps")

    def change(self, rows: Rows) -> Rows:
        """Returns what it adds to residuals (row, d_model) at strength 1, in their floating type."""
        inner = rows @ self.read.T.to(rows.dtype) + self.bias.to(rows.dtype)
        change: Rows = (inner.clamp_min(0.0) if self.activation == "relu" else inner) @ self.write.to(rows.dtype)
        return change

    def scaled(self, factor: float) -> "LowRankMap":
        """Returns the map that adds what this one adds, times a factor."""
        return replace(self, write=factor * self.write)

    def orthonormal(self) -> "LowRankMap":
        """Returns the same linear map with orthonormal write directions, as few as it needs. What a pair adds is bounded by the
        product of its lengths, so a short write direction with a long read direction is kept."""
        read, bias = self.read.double(), self.bias.double()
        gain = torch.cat([read, bias[:, None]], dim=1).norm(dim=1)
        left, sizes, basis = torch.linalg.svd(gain[:, None] * self.write.double(), full_matrices=False)
        kept = sizes > 1e-6 * sizes[0]
        # (kept, rank): what each of the basis gets of each coefficient of unit gain
        mixed = (left * sizes)[:, kept].T / gain.clamp_min(torch.finfo(gain.dtype).tiny)
        return LowRankMap.of(mixed @ read, basis[kept], mixed @ bias)

    def direction(self) -> Direction:
        """Returns the direction along which it writes most, (d_model,), of the length of its longest write direction.

        Its line is the first left singular vector of sum_i u_i v_i^T, that of the longest u where nothing is read; its sign
        is that of the longest u. At rank 1 it is u.
        """
        lengths = self.write.double().norm(dim=1)
        longest = self.write[int(lengths.argmax())].double()
        if self.rank == 1 or not bool(self.read.any()):
            return longest.float()
        # the left singular vectors of U^T V are those of U^T R^T, with V^T = Q R
        upper = torch.linalg.qr(self.read.double().T, mode="r").R
        left = torch.linalg.svd(self.write.double().T @ upper.T, full_matrices=False).U[:, 0]
        sign = -1.0 if float(left @ longest) < 0.0 else 1.0
        found: Direction = (sign * float(lengths.max()) * left).float()
        return found
