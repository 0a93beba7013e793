"""StaticEdits: the edits of a pass as tensor operations of fixed shape, over memory that stays where it is.

A graph that is compiled or captured once contains them for every layer. What acts in a pass is what the tables hold then: a token without
edits has the slot of unsteered requests, whose edits change nothing.
"""

from collections.abc import Sequence

import torch
from torch import nn

from steering.injection.apply import LayerEdits
from steering.injection.injector import Injection
from steering.injection.slots import LayerForm, Slots
from steering.model.hook_points import only_residual
from steering.plan.types import ROTATE, SteeringPlan
from steering.shapes import Float, Int, Residual, Tensor
from steering.uploads import uploaded

EDITS, COLUMNS = 4, 8
"""Edits of a request at one layer, and interventions of a request, at most: each costs every token of every pass."""


def is_static(plan: SteeringPlan) -> bool:
    """Whether the graphs have operations for all edits of a plan: those of the residual that follow neither conditions nor controllers,
    turn nothing, and are the request's own."""
    edits = [one for at_layer in plan.layers.values() for one in at_layer]
    return not (
        plan.empty
        or not only_residual(plan.layers)
        or plan.thresholds
        or plan.held
        or plan.columns > COLUMNS
        or any(sum(len(one.kinds) for one in at_layer) > EDITS for at_layer in plan.layers.values())
        or any(one.mandatory or ROTATE in one.kinds for one in edits)
    )


class StaticEdits(nn.Module):
    """Applies edits inside graphs. A module, so that its tables are inputs of a compiled graph as parameters are.

    slots (token,), weights (token, column), left (token,): of the tokens of a pass, as in `Injection`.
    edits (layer, token, edit), changes, scaled (layer, token): the doses that the last pass noted, as in `PassDoses`.
    """

    vectors: Tensor
    numbers: Tensor
    codes: Tensor
    rows: Int[Tensor, "slot layer edit"]
    slots: Int[Tensor, "token"]
    weights: Float[Tensor, "token column"]
    left: Float[Tensor, "token"]
    edits: Float[Tensor, "layer token edit"]
    changes: Float[Tensor, "layer token"]
    scaled: Float[Tensor, "layer token"]

    def __init__(self, tables: Slots, layers: Sequence[int], tokens: int) -> None:
        """tables: that do not grow. layers: at which it acts, in order. tokens: of a pass, at most."""
        super().__init__()
        device, width = tables.device, tables.rows.shape[2]
        self._numbers = {layer: number for number, layer in enumerate(layers)}
        self._form = LayerForm(width, reads=True, relative=True, relu=True, mandatory=False, rotations=())
        state = {
            "vectors": tables.vectors,
            "numbers": tables.numbers,
            "codes": tables.codes,
            "rows": tables.rows,
            "slots": torch.zeros(tokens, dtype=torch.int64, device=device),
            "weights": torch.zeros(tokens, tables.timings.shape[1], device=device),
            "left": torch.zeros(tokens, device=device),
            "edits": torch.zeros(len(layers), tokens, width, device=device),
            "changes": torch.zeros(len(layers), tokens, device=device),
            "scaled": torch.zeros(len(layers), tokens, device=device),
        }
        for name, table in state.items():
            self.register_buffer(name, table, persistent=False)

    def clear(self, count: int) -> None:
        """Before a pass of that many tokens: none is steered."""
        self.slots[:count].zero_()
        self.left[:count].zero_()  # what an infinite edit left would be multiplied by nothing, which is NaN

    def begin(self, injection: Injection) -> None:
        """Before a pass, on the host: copies what steers its tokens to where graphs read it."""
        weights = injection.weights
        self.slots[: injection.tokens].copy_(injection.slots_of_tokens)
        self.weights[: injection.tokens, : weights.shape[1]].copy_(weights)
        self.left[: injection.tokens].copy_(injection.left)

    def forward(self, layer: int, hidden: Residual, residual: Residual | None) -> Residual:
        """Returns `hidden` (token, d_model), which with `residual` is the stream, with what the edits of a layer change."""
        count, number = hidden.shape[0], self._numbers[layer]
        stream = hidden.float() if residual is None else hidden.float() + residual.float()
        rows = self.rows[:, layer].index_select(0, self.slots[:count])
        edits = LayerEdits.of((self.vectors, self.numbers, self.codes), rows, [self._form])
        left = self.left[:count].clone()
        found = edits.apply(stream, edits.weights(self.weights[:count]), left)
        self.left[:count].copy_(left)
        self.edits[number, :count].copy_(found.doses)
        self.changes[number, :count].copy_(found.change)
        assert found.share is not None
        self.scaled[number, :count].copy_(found.share < 1.0)
        return hidden + (found.after - stream).to(hidden.dtype)

    def finish(self, injection: Injection) -> None:
        """After a pass: hands on the doses of its tokens."""
        if not injection.edited:
            return
        numbers = uploaded([self._numbers[layer] for layer in injection.edited], injection.slots_of_tokens.device)
        tables, first = injection.noted()
        for table, found in zip(tables, (self.edits, self.changes, self.scaled), strict=True):
            noted = table[first : first + len(numbers)]
            noted.copy_(found.index_select(0, numbers)[tuple(slice(size) for size in noted.shape)])
