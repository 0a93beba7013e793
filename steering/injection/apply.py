"""Applies the edits of one layer to residuals, by a few tensor operations of fixed shape.

Edits are gathered by slot for tokens of different requests, (token, edit, d_model), or are those of one request for all
tokens of a piece of its prompt, (edit, d_model). The C++ operation `steer` computes the same inside a compiled graph.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import torch

from steering.injection.slots import KIND, MANDATORY, READ, WEIGHT, LayerForm, rows_of
from steering.plan.types import RELU, ROTATE
from steering.rowwise import dot
from steering.shapes import Bool, Float, Int, Residual, Tensor
from steering.uploads import uploaded

TINY = 1e-12
"""The least norm that is divided by; keeps 0 / 0 at 1 where nothing changes and nothing is left of a bound."""
Index: TypeAlias = slice | Int[Tensor, "row"]
"""Rows of a tensor: a slice where they are neighbours, which costs no copy."""
PerToken: TypeAlias = Float[Tensor, "token"]


def index_of(ranges: Sequence[range], device: torch.device) -> Index:
    """Returns the index of the rows of several ranges, in the order given."""
    if all(one.stop == other.start for one, other in pairwise(ranges)):
        return slice(ranges[0].start, ranges[-1].stop) if ranges else slice(0, 0)
    return uploaded([row for one in ranges for row in one], device, torch.int64)


def take(values: Tensor, index: Index) -> Tensor:
    """Returns the rows of an index, on the device of the values: a view for a slice, and the tensor itself for all of its rows."""
    if not isinstance(index, slice):
        return values.index_select(0, index.to(values.device))
    return values if index.stop - index.start == values.shape[0] else values[index]


def norms_of(residual: Residual) -> PerToken:
    """Returns |r| of each token, at least TINY so that it can be divided by."""
    norms: Tensor = torch.linalg.vector_norm(residual, dim=-1)
    return norms.clamp_min_(TINY)


def summed(
    vectors: Float[Tensor, "row d_model"], rows: Int[Tensor, "token edit"], coefficients: Float[Tensor, "token edit"]
) -> Residual:
    """Returns the sum of each token's rows times its coefficients, in the same bits whatever the other tokens are.

    Not by embedding_bag: it starts all threads of a CPU for a few tokens, too, and rounds otherwise than torch's products.
    """
    first, *others = coefficients[:, :, None].unbind(1)
    total, *more = (vectors.index_select(0, one) for one in rows.unbind(1))
    total *= first
    for part, factors in zip(more, others, strict=True):
        total.addcmul_(part, factors)
    return total


class Edited(NamedTuple):
    """What edits did.

    after: the residuals.
    doses: of each edit, signed.
    change: |r' - r| / |r|.
    share: what the guard left of the change of each token; None without a guard.
    """

    after: Residual
    doses: Float[Tensor, "token edit"]
    change: PerToken
    share: PerToken | None


@dataclass(frozen=True, slots=True, eq=False)
class LayerEdits:
    """The edits of some tokens at one layer. Tensors begin with (token, edit), or with (edit,) where one request has all tokens.

    read, relative, relu, mandatory: None where no edit needs them.
    columns: of each edit's weight.
    rotations: numbers of the edits that may rotate; where they do is in `rotates`.
    heads: the attention head that each edit removes, of `head_count`; None where they do not.
    """

    write: Float[Tensor, "*edit d_model"]
    read: Float[Tensor, "*edit d_model"] | None
    bias: Float[Tensor, "*edit"]
    relative: Float[Tensor, "*edit"] | None
    weight: Float[Tensor, "*edit"]
    relu: Bool[Tensor, "*edit"] | None
    mandatory: Bool[Tensor, "*edit"] | None
    columns: Int[Tensor, "*edit"]
    rotates: Bool[Tensor, "*edit"]
    rotations: tuple[int, ...]
    heads: Int[Tensor, "*edit"] | None = None
    head_count: int = 0

    @classmethod
    def of(
        cls,
        tables: tuple[Tensor, Tensor, Tensor],
        rows: Int[Tensor, "*edit"],
        forms: Sequence[LayerForm],
        head_count: int = 0,
    ) -> "LayerEdits":
        """Gathers the edits in some rows. tables: the first three of `Slots.tables`. forms: of the requests that they belong to."""
        vectors = tables[0]
        numbers, codes = rows_of(tables[1], rows), rows_of(tables[2], rows)
        reads, relative = any(one.reads for one in forms), any(one.relative for one in forms)
        relu, mandatory = any(one.relu for one in forms), any(one.mandatory for one in forms)
        write = rows_of(vectors, rows)
        return cls(
            write=write,
            read=rows_of(vectors, codes[..., READ]) if reads else None,
            bias=numbers[..., 0],
            relative=numbers[..., 1] if relative else None,
            weight=numbers[..., 2],
            relu=codes[..., KIND] == RELU if relu else None,
            mandatory=codes[..., MANDATORY] == 1 if mandatory else None,
            columns=codes[..., WEIGHT],
            rotates=codes[..., KIND] == ROTATE,
            rotations=tuple(sorted({number for one in forms for number in one.rotations})),
            heads=write.argmax(-1) if any(one.heads for one in forms) else None,
            head_count=head_count,
        )

    def of_row(self, row: int, form: LayerForm) -> "LayerEdits":
        """Returns the edits of one request, as it has them alone: views of what was gathered for several."""
        here = row, slice(form.count)
        return LayerEdits(
            write=self.write[here],
            read=None if self.read is None or not form.reads else self.read[here],
            bias=self.bias[here],
            relative=None if self.relative is None or not form.relative else self.relative[here],
            weight=self.weight[here],
            relu=None if self.relu is None or not form.relu else self.relu[here],
            mandatory=None if self.mandatory is None or not form.mandatory else self.mandatory[here],
            columns=self.columns[here],
            rotates=self.rotates[here],
            rotations=form.rotations,
            heads=None if self.heads is None or not form.heads else self.heads[here],
            head_count=self.head_count,
        )

    def to(self, device: torch.device) -> "LayerEdits":
        """Returns the edits on the device of their layer."""
        if self.write.device == device:
            return self
        parts = {one.name: getattr(self, one.name) for one in fields(self)}
        moved: dict[str, Any] = {name: part.to(device) for name, part in parts.items() if torch.is_tensor(part)}
        return replace(self, **moved)

    def weights(self, weights: Float[Tensor, "token column"]) -> Float[Tensor, "token edit"]:
        """Returns the weight of each edit. weights: of the interventions and controllers of each token's request."""
        weights = weights.to(self.columns.device)
        picked = weights.gather(1, self.columns) if self.columns.dim() == 2 else weights[:, self.columns]
        return picked * self.weight

    def change(
        self, residual: Residual, norms: PerToken, weights: Float[Tensor, "token edit"]
    ) -> tuple[Residual, Float[Tensor, "token edit"]]:
        """Returns the sum of what the edits add to each residual, and the coefficient c of each."""
        if self.heads is not None:
            return self._without_heads(residual, self.heads, weights)
        shared = self.write.dim() == 2  # by all tokens
        inner = self.bias if self.relative is None else self.bias + self.relative * norms[:, None]
        if self.read is not None:
            products = residual @ self.read.T if shared else torch.bmm(self.read, residual[:, :, None])[:, :, 0]
            inner = inner + products
        if self.relu is not None:
            inner = torch.where(self.relu, inner.clamp_min(0.0), inner)
        # 0 where the weight is 0, even if the numbers overflow: NaN there would enter prompts that requests share. 0 for rotations,
        # which have no bias and read nothing
        coefficients = (inner * weights).masked_fill_(weights == 0.0, 0.0)
        change = coefficients @ self.write if shared else torch.bmm(coefficients[:, None], self.write)[:, 0]
        for number in self.rotations:
            turned = _rotated(residual, norms, self.write[..., number, :], weights[:, number])
            turned = torch.where(self.rotates[..., number, None], turned, 0.0)  # that of a vector that overflows is NaN
            coefficients[:, number] += torch.linalg.vector_norm(turned, dim=-1)
            change = change + turned
        return change, coefficients

    def _without_heads(
        self, heads: Float[Tensor, "token width"], numbers: Int[Tensor, "*edit"], weights: Float[Tensor, "token edit"]
    ) -> tuple[Float[Tensor, "token width"], Float[Tensor, "token edit"]]:
        """Returns what removing shares of concatenated heads adds to them, and its length by edit."""
        parts, numbers = heads.view(len(heads), self.head_count, -1), numbers.expand_as(weights)
        shares = weights.new_zeros(parts.shape[:2]).scatter_add_(1, numbers, weights)
        lengths = torch.linalg.vector_norm(parts, dim=-1).gather(1, numbers)
        return -(parts * shares[..., None]).flatten(1), -lengths * weights

    def apply(self, residual: Residual, weights: Float[Tensor, "token edit"], left: PerToken | None) -> Edited:
        """Applies the request's own edits, then the mandatory ones, to float32 residuals.

        left: what the dose guard has left of each token's bound; what is used of it is subtracted here.
        """
        norms = norms_of(residual)
        own = weights if self.mandatory is None else weights.masked_fill(self.mandatory, 0.0)
        change, coefficients = self.change(residual, norms, own)
        share = None
        if left is not None:
            dose = torch.linalg.vector_norm(change, dim=-1) / norms
            share = ((left + TINY) / (dose + TINY)).clamp_max_(1.0)
            left.sub_(dose * share).clamp_min_(0.0)
            change, coefficients = change * share[:, None], coefficients * share[:, None]
        doses, after = coefficients / norms[:, None], residual + change
        if self.mandatory is not None:
            met = norms_of(after)
            more, coefficients = self.change(after, met, weights.masked_fill(~self.mandatory, 0.0))
            doses, after, change = doses + coefficients / met[:, None], after + more, change + more
        return Edited(after, doses, torch.linalg.vector_norm(change, dim=-1) / norms, share)


def _rotated(residual: Residual, norms: PerToken, direction: Float[Tensor, "..."], angle: PerToken) -> Residual:
    """Returns what turning each residual by an angle toward a direction adds to it.

    Nothing where it is parallel to the direction, since there is no plane to turn in.
    """
    directions = direction.expand_as(residual)
    projection = dot(residual, directions)
    across = residual - projection[:, None] * directions
    height = torch.linalg.vector_norm(across, dim=-1)
    # atan2 keeps the digits that arccos loses near 0 and pi
    turned = (torch.atan2(height, projection) - angle).clamp(0.0, torch.pi)
    parallel = (height <= 1e-6 * norms) | (angle == 0.0)
    along = norms * turned.cos() - projection
    rest = norms * turned.sin() / torch.where(parallel, 1.0, height) - 1.0
    return torch.where(parallel[:, None], 0.0, along[:, None] * directions + rest[:, None] * across)
