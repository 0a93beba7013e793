"""Slots: the tables of the device, in which each running request with steering has one slot.

The vectors of edits take the memory, so they lie in one table of rows that grows as needed. Requests with one plan share their
rows, which stay in place until other plans need the room. What is dense, by (slot, layer, number of the edit), is the index of these
rows, which is small.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from typing import TypeAlias

import torch

from steering.model.hook_points import HEADS, KINDS, kind_of, layer_of
from steering.plan.scope import TIMING, timing
from steering.plan.types import HEAD, MAX_HOLDS, RELU, ROTATE, Edits, SteeringPlan
from steering.shapes import Int, Shaped, Tensor
from steering.uploads import uploaded

MAX_THRESHOLDS = 64
"""Columns of the decision state; a request's plan may have no more thresholds."""
UNSTEERED_SLOT = 0
"""The slot of every request without steering: it has no edits, and what is summed in it is not read."""
NO_EDIT = 0
"""The row of vectors and edits that is all zeros: its edit changes nothing."""
NEVER = 1 << 30
"""The token at which an intervention first acted, if it has not."""
KIND, READ, WEIGHT, DOSE, MANDATORY = range(5)
"""Columns of `codes`: kind of the edit, row of the vector it reads, columns of its weight and dose, stage."""
_STATE = {
    "fired": NEVER, "doses": 0.0, "totals": 0.0, "decisions": 0, "prompt_scores": 0.0, "scores": nan,
    "strengths": 0.0, "errors": nan, "readout_sums": 0.0,
}  # fmt: skip
"""Tables that a running request changes, and what the slot of a new one holds."""
_PLACES = ("rows", "timings")
Size: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Room:
    """The size of tables. fixed: whether they keep it, and with it their memory; others grow."""

    slots: int = 8
    rows: int = 8
    edits: int = 1
    columns: int = 1
    fixed: bool = False


GROWING = Room()


class NoRoom(Exception):
    """Tables that keep their size are full."""


@dataclass(frozen=True, slots=True)
class LayerForm:
    """What the edits of a plan at one point need, so that a pass does no more. rotations: numbers of those that rotate."""

    count: int
    reads: bool
    relative: bool
    relu: bool
    mandatory: bool
    rotations: tuple[int, ...]
    heads: bool = False

    @property
    def depends(self) -> bool:
        """Whether what the edits change, or the dose of it, depends on the residual's direction, its length, or on other edits."""
        return self.reads or self.relative or self.relu or self.mandatory or bool(self.rotations) or self.heads

    @classmethod
    def of(cls, edits: Sequence[Edits], reads: Sequence[bool], relative: Sequence[float]) -> "LayerForm":
        """Describes the edits of one point, in their order. reads, relative: whether each reads, and its share of |r|."""
        kinds = [kind for one in edits for kind in one.kinds]
        return cls(
            count=len(kinds),
            reads=any(reads),
            relative=any(relative),
            relu=RELU in kinds,
            mandatory=any(one.mandatory for one in edits),
            rotations=tuple(number for number, kind in enumerate(kinds) if kind == ROTATE),
            heads=HEAD in kinds,
        )


@dataclass(slots=True, eq=False)
class _Placed:
    """The rows of one plan. index (place, edit): its rows by `Slots.place_of`; users: slots that have it; depending: points where
    a form `depends`."""

    plan: SteeringPlan
    forms: dict[int, LayerForm]
    depending: frozenset[int]
    taken: list[int]
    index: Int[Tensor, "place edit"]
    users: int = 0


class Slots:
    """Edits and state by slot. A request has one slot from admission to release.

    vectors (row, d_model), numbers (row, 3), codes (row, 5): what an edit writes, or another reads; see `Edits` and KIND.
    rows (slot, place, edit): the rows of each request's edits, then NO_EDIT. Places are the points of all layers: residuals first, so that
    the place of the residual after a layer is the layer.
    timings (slot, column, TIMING): see plan/scope.py. Columns are the interventions of a plan, then its controllers.
    doses (slot, place, column, 2): sums of doses, and tokens at which an intervention acted.
    totals (slot, 3): the dose of everything summed over tokens and layers; tokens that changed; uses of the guard.
    fired (slot, column): the first generated token at which it acted, -1 for a prompt position, or NEVER.
    decisions, prompt_scores, scores (slot, threshold): see conditions.py.
    strengths, errors (slot, hold), readout_sums (slot, hold, 3): see Controllers there.
    layout: changes when the tables are given other memory.
    head_count: of the attention heads that edits may remove.
    fused: whether the operator of fused.py applies edits where these tables are.
    """

    fused = False

    def __init__(
        self,
        layer_count: int,
        d_model: int,
        device: torch.device,
        devices: Sequence[torch.device] | None = None,
        room: Room = GROWING,
        head_count: int = 0,
    ) -> None:
        """device: of the tables. devices: of the layers, where their edits are gathered; None: all on that of the tables. room: for what,
        at first."""
        self.device, self.layer_count, self.head_count = device, layer_count, head_count
        self._devices, places = tuple(devices or [device] * layer_count), KINDS * layer_count
        slots, columns = room.slots, room.columns
        self.vectors = torch.zeros(room.rows, d_model, device=device)
        self.numbers = torch.zeros(room.rows, 3, device=device)
        self.codes = torch.zeros(room.rows, 5, dtype=torch.int64, device=device)
        self.rows = torch.zeros(slots, places, room.edits, dtype=torch.int64, device=device)
        self.timings = torch.zeros(slots, columns, TIMING, device=device)
        self.fired = torch.zeros(slots, columns, dtype=torch.int64, device=device)
        self.doses = torch.zeros(slots, places, columns, 2, device=device)
        self.totals = torch.zeros(slots, 3, device=device)
        self.decisions = torch.zeros(slots, MAX_THRESHOLDS, dtype=torch.int8, device=device)
        self.prompt_scores, self.scores = torch.zeros(2, slots, MAX_THRESHOLDS, device=device)
        self.strengths, self.errors = torch.zeros(2, slots, MAX_HOLDS, device=device)
        self.readout_sums = torch.zeros(slots, MAX_HOLDS, 3, device=device)
        self.layout, self._fixed = 0, room.fixed
        self._free = list(range(slots - 1, UNSTEERED_SLOT, -1))
        self._free_rows = list(range(room.rows - 1, NO_EDIT, -1))
        self._placed: dict[int, _Placed] = {}
        self._plans: dict[int, _Placed] = {}

    @property
    def tables(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What describes edits: `vectors`, `numbers`, `codes` and `rows`."""
        return self.vectors, self.numbers, self.codes, self.rows

    def place_of(self, point: int) -> int:
        """Returns the place of a point in the tables."""
        return kind_of(point) * self.layer_count + layer_of(point)

    def device_of(self, point: int) -> torch.device:
        """Returns the device of the layer of a point."""
        return self._devices[layer_of(point)]

    def fuses(self, point: int) -> bool:
        """Whether one kernel does what all edits of a point do."""
        return self.fused and kind_of(point) != HEADS and self.device_of(point) == self.device

    def allocate(self, plan: SteeringPlan, prompt_length: int) -> int:
        """Returns the slot of a new request, with its edits in place and nothing decided or measured.

        Where memory ends, the tables are as before. Raises NoRoom where they keep their size.
        """
        if plan.empty:
            return UNSTEERED_SLOT
        columns = plan.columns
        edits = max(sum(len(one.kinds) for one in at_layer) for at_layer in plan.layers.values())
        self._reserve(edits, columns)
        placed = self._placed.get(id(plan.layers)) or self._place(plan)
        timings = torch.tensor([timing(one, plan, prompt_length) for one in plan.interventions])
        owners = [owner for _, owner in plan.held]
        timings = uploaded(torch.cat([timings, timings[owners]]), self.device)
        slot = self._free[-1]
        for name, value in _STATE.items():
            getattr(self, name)[slot].fill_(value)
        self.rows[slot].zero_()
        self.rows[slot, :, : placed.index.shape[1]].copy_(placed.index)
        self.timings[slot].zero_()
        self.timings[slot, :columns].copy_(timings)
        self._free.pop()
        placed.users += 1
        self._plans[slot] = placed
        return slot

    def release(self, slot: int) -> None:
        """Frees a slot. Harmless for that of unsteered requests. Needs no memory, which may be short now."""
        if slot != UNSTEERED_SLOT:
            self._plans.pop(slot).users -= 1
            self._free.append(slot)

    def form(self, slot: int, layer: int) -> LayerForm | None:
        """Returns the form of a request's edits at a layer; None where it has none."""
        return None if slot == UNSTEERED_SLOT else self._plans[slot].forms.get(layer)

    def depending(self, slot: int) -> frozenset[int]:
        """Returns the points where what a steered request's edits do depends on the residual."""
        return self._plans[slot].depending

    def _place(self, plan: SteeringPlan) -> _Placed:
        """Writes the edits of a plan to free rows. Raises ValueError for edits of another width."""
        found = [(layer, edits) for layer, at_layer in plan.layers.items() for edits in at_layer]
        width = self.vectors.shape[1]
        for _, edits in found:
            if (wrong := edits.write.shape[1]) != width:  # broadcasting would be silent
                raise ValueError(f"edits are {width} numbers wide, got {wrong}")
        write, read = torch.cat([edits.write for _, edits in found]), torch.cat([edits.read for _, edits in found])
        numbers, reads = torch.cat([edits.numbers for _, edits in found]), read.any(1).nonzero().flatten().tolist()
        self._reserve_rows(len(write) + len(reads))
        taken = self._free_rows[-len(write) - len(reads) :]
        reading = dict(zip(reads, taken[len(write) :], strict=True))
        held, count = plan.held, len(plan.interventions)
        rows: list[list[int]] = []
        index: list[list[int]] = [[] for _ in range(KINDS * self.layer_count)]
        for layer, edits in found:
            hold = held.get((layer, edits.owner))
            weight = edits.owner if hold is None else count + hold
            for kind in edits.kinds:
                index[self.place_of(layer)].append(taken[len(rows)])
                rows.append([kind, reading.get(len(rows), NO_EDIT), weight, edits.owner, int(edits.mandatory)])
        codes, widest = torch.tensor(rows), max(map(len, index))
        numbers[codes[:, KIND] == ROTATE, :2] = 0.0
        forms: dict[int, LayerForm] = {}
        relative, start = numbers[:, 1].tolist(), 0
        for layer, at_layer in plan.layers.items():
            here = range(start, start + sum(len(one.kinds) for one in at_layer))
            forms[layer] = LayerForm.of(at_layer, [row in reading for row in here], [relative[row] for row in here])
            start = here.stop
        placed = _Placed(
            plan=plan,
            forms=forms,
            depending=frozenset(layer for layer, form in forms.items() if form.depends),
            taken=taken,
            index=uploaded([[*at, *[NO_EDIT] * (widest - len(at))] for at in index], self.device),
        )
        at = uploaded(taken, self.device)
        self.vectors[at] = uploaded(torch.cat([write, read[reads]]), self.device)
        self.numbers[at[: len(write)]] = uploaded(numbers, self.device)
        self.codes[at[: len(write)]] = uploaded(codes, self.device)
        del self._free_rows[-len(taken) :]
        self._placed[id(plan.layers)] = placed
        return placed

    def _reserve_rows(self, count: int) -> None:
        rows = len(self.vectors)
        for key in [key for key, placed in self._placed.items() if not placed.users]:
            if count > len(self._free_rows):
                self._free_rows += self._placed.pop(key).taken
        if count > len(self._free_rows):
            wanted = power_of_two(rows - len(self._free_rows) + count)
            self._resize({"vectors": (wanted,), "numbers": (wanted,), "codes": (wanted,)})
            self._free_rows = [*range(wanted - 1, rows - 1, -1), *self._free_rows]

    def _reserve(self, edits: int, columns: int) -> None:
        """Makes a slot free, and all of them wide enough. Doubles what is too small."""
        slots, places, width = self.rows.shape
        many = slots if self._free else 2 * slots
        width, wide = max(width, power_of_two(edits)), max(self.timings.shape[1], power_of_two(columns))
        if (many, width, wide) == (slots, self.rows.shape[2], self.timings.shape[1]):
            return
        sizes: dict[str, Size] = dict.fromkeys((*_STATE, *_PLACES), (many,))
        sizes |= {"rows": (many, places, width), "timings": (many, wide), "fired": (many, wide)}
        self._resize(sizes | {"doses": (many, places, wide)})
        self._free = [*range(many - 1, slots - 1, -1), *self._free]

    def _resize(self, sizes: dict[str, Size]) -> None:
        """Gives tables more memory. All before the first is replaced, since memory may be short."""
        if self._fixed:
            raise NoRoom
        grown = {}
        for name, size in sizes.items():
            old: Tensor = getattr(self, name)
            new = torch.full((*size, *old.shape[len(size) :]), _STATE.get(name, 0), dtype=old.dtype, device=self.device)
            new[tuple(slice(length) for length in old.shape)] = old
            grown[name] = new
        for name, table in grown.items():
            setattr(self, name, table)
        self.layout += 1


def power_of_two(count: int) -> int:
    """Returns the lowest power of two that is not below a count."""
    return 1 << max(count - 1, 0).bit_length()


def rows_of(table: Shaped[Tensor, "row width"], rows: Int[Tensor, "*edit"]) -> Shaped[Tensor, "*edit width"]:
    """Returns some rows of a table."""
    return table.index_select(0, rows.flatten()).view(*rows.shape, table.shape[1])
