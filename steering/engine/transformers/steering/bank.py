"""SteeringBank: one residual-sized row per (phase, layer, slot): the fast path. Cost does not grow with vectors or plans."""

from collections.abc import Collection

import torch

from steering.engine.transformers.batch import Batch
from steering.engine.transformers.steering.prompt_doses import OpeningBlocks
from steering.plan.types import Phase, SteeringPlan
from steering.shapes import Float, Int, Residual, Tensor


class SteeringBank:
    """Every slot's opening adds, summed at admission. A slot without any holds zeros and changes nothing.

    Beside the rows it keeps, per (phase, layer, slot), the sum of 1 / |r| over the tokens met: times an add's amount
    that is its measured relative dose.
    """

    def __init__(self, layer_count: int, d_model: int, device: torch.device) -> None:
        self._device = device
        self.rows = torch.zeros(len(Phase), layer_count, 0, d_model, device=device)
        self.inverse = torch.zeros(len(Phase), layer_count, 0, device=device)
        self.moves = 0
        """How often rows and sums were given other memory."""
        self._layers: dict[int, frozenset[int]] = {}
        self.active: frozenset[int] = frozenset()

    def reserve(self, slots: int) -> None:
        """Room for that many slots."""
        more = slots - self.rows.shape[2]
        if more > 0:
            self.moves += 1
            phases, layers, _, d_model = self.rows.shape
            self.rows = torch.cat([self.rows, self.rows.new_zeros(phases, layers, more, d_model)], dim=2)
            self.inverse = torch.cat([self.inverse, self.inverse.new_zeros(phases, layers, more)], dim=2)

    def place(self, slot: int, plan: SteeringPlan) -> None:
        """Gives a slot the opening rows of a plan."""
        self.clear(slot)
        layers = {layer: program.opening for layer, program in plan.layers.items() if program.opening is not None}
        for layer, opening in layers.items():
            self.rows[:, layer, slot] = opening.to(self._device)
        if layers:
            self._layers[slot] = frozenset(layers)
            self._refresh()

    def forget(self, slot: int, phase: Phase) -> None:
        """Drops what was met so far in a phase."""
        self.inverse[phase, :, slot] = 0.0

    def clear(self, slot: int) -> None:
        """Zeroes a slot."""
        self.inverse[:, :, slot] = 0.0
        if slot in self._layers:
            self.rows[:, sorted(self._layers.pop(slot)), slot] = 0.0
            self._refresh()

    def move(self, source: int, target: int) -> None:
        """Carries a slot's rows and sums to another, and clears the first."""
        self.rows[:, :, target] = self.rows[:, :, source]
        self.inverse[:, :, target] = self.inverse[:, :, source]
        if source in self._layers:
            self._layers[target] = self._layers[source]
        self.clear(source)

    def _refresh(self) -> None:
        self.active = frozenset().union(*self._layers.values())

    def layers_of(self, slots: tuple[int, ...]) -> frozenset[int]:
        """Layers at which any of these slots adds something."""
        return frozenset().union(*(self._layers.get(slot, frozenset()) for slot in slots))

    def inverse_sums(self, slot: int) -> dict[int, tuple[float, ...]]:
        """layer -> sum of 1 / |r| per phase, for the layers where the slot adds something."""
        layers = sorted(self._layers.get(slot, ()))
        sums = self.inverse[:, layers, slot].T.tolist()
        return dict(zip(layers, (tuple(row) for row in sums), strict=True))

    def places(self, batch: Batch) -> Int[Tensor, "token"]:
        """Where the tokens of a pass have their rows at layer 0, counted through phases, layers and slots."""
        _, layers, slots, _ = self.rows.shape
        phases = Phase.GENERATED if batch.decode else batch.phases()
        return phases * (layers * slots) + batch.slots

    def add(
        self, layer: int, residual: Residual, places: Int[Tensor, "token"], blocks: OpeningBlocks | None
    ) -> Residual:
        """residual (token, d_model) float32 plus each token's row; notes 1 / |r| as it was met. places: see there; blocks: of
        a packed pass, None in a decode pass, where row r is slot r."""
        norms: Float[Tensor, token] = torch.linalg.vector_norm(residual, dim=-1)
        inverse = norms.clamp_min(1e-12).reciprocal()
        if blocks is None:
            rows = residual.shape[0]
            self.inverse[Phase.GENERATED, layer, :rows] += inverse
            return residual + self.rows[Phase.GENERATED, layer, :rows]
        blocks.note(layer, inverse)
        here = places + layer * self.rows.shape[2]
        self.inverse.view(-1).index_put_((here,), inverse, accumulate=True)
        # whole rows, one after the other: many times faster than indexing by phase and slot
        return self.rows.view(-1, self.rows.shape[3]).index_select(0, here).add_(residual)

    def added(
        self,
        layers: Collection[int],
        inverse: Float[Tensor, "layer token"],
        places: Int[Tensor, "token"],
        blocks: OpeningBlocks,
    ) -> None:
        """A packed pass has added the rows of some layers by itself, and met this 1 / |r|; of others `inverse` holds zeros.
        places, blocks: see `add`."""
        for layer in layers:
            blocks.note(layer, inverse[layer])
        here = places + torch.arange(len(inverse), device=self._device)[:, None] * self.rows.shape[2]
        self.inverse.view(-1).index_put_((here.view(-1),), inverse.view(-1), accumulate=True)
