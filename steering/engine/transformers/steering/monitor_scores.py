"""MonitorScores: the scores of all monitors at the positions of a pass that predict tokens. Changes nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch

from steering.engine.readings import MonitorSet
from steering.engine.transformers.batch import Batch
from steering.engine.transformers.sequence import Sequence
from steering.engine.transformers.steering.gather import Index, index_of, take
from steering.rowwise import dot
from steering.shapes import Float, Int, Residual, Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _Table:
    """The monitors of one set that read one layer. columns: their places in the set's order."""

    columns: Int[Tensor, "monitor"]
    directions: Float[Tensor, "monitor d_model"]
    middles: Float[Tensor, "monitor"]
    scales: Float[Tensor, "monitor"]


class MonitorTables:
    """The directions of monitor sets on the device. They serve every pass while the set is in use."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._built: WeakKeyDictionary[MonitorSet, dict[bool, dict[int, _Table]]] = WeakKeyDictionary()

    def of(self, monitors: MonitorSet, *, first: bool) -> Mapping[int, _Table]:
        """Returns the tables by layer. first: of the last prompt position, where prompts are scored too."""
        built = self._built.setdefault(monitors, {})
        if first not in built:
            built[first] = self._build(monitors, first=first)
        return built[first]

    def _build(self, monitors: MonitorSet, *, first: bool) -> dict[int, _Table]:
        by_layer: dict[int, list[int]] = {}
        read = monitors.read_at(first=first)
        for column, monitor in enumerate(read):
            by_layer.setdefault(monitor.reading.layer, []).append(column)
        return {
            layer: _Table(
                columns=torch.tensor(columns, device=self.device),
                directions=torch.stack([read[one].reading.direction for one in columns]).to(self.device),
                middles=torch.tensor([read[one].reading.middle for one in columns], device=self.device),
                scales=torch.tensor([read[one].reading.scale for one in columns], device=self.device),
            )
            for layer, columns in by_layer.items()
        }


@dataclass(slots=True, eq=False)
class _Group:
    """Sequences with one set of monitors, all at their first token or all at a later one."""

    sequences: tuple[Sequence, ...]
    tokens: Index
    tables: Mapping[int, _Table]
    scores: Float[Tensor, "row monitor"]


class MonitorScores:
    """Prepared on the host for one pass; `read` is called at the layers in `layers`."""

    def __init__(self, batch: Batch, tables: MonitorTables) -> None:
        members: dict[tuple[MonitorSet, bool], list[tuple[int, Sequence]]] = {}
        for segment in batch.segments:
            sequence = segment.sequence
            if len(sequence.monitors) and segment.predicts:
                key = (sequence.monitors, not sequence.generated)
                members.setdefault(key, []).append((segment.end - 1, sequence))
        self._groups = [_group(*key, rows, tables) for key, rows in members.items()]
        self.layers = frozenset(layer for group in self._groups for layer in group.tables)

    def read(self, layer: int, residual: Residual) -> None:
        """residual (token, d_model) float32, as it leaves the layer."""
        for group in self._groups:
            table = group.tables.get(layer)
            if table is not None:
                rows = take(residual, group.tokens)[:, None].expand(-1, len(table.columns), -1)
                projections = dot(rows, table.directions.expand_as(rows))
                group.scores[:, table.columns] = (projections - table.middles) / table.scales

    def by_sequence(self) -> dict[int, list[float]]:
        """sequence id -> scores in the order of `MonitorSet.read_at`. Waits for the device."""
        return {
            sequence.id: scores
            for group in self._groups
            for sequence, scores in zip(group.sequences, group.scores.tolist(), strict=True)
        }


def _group(monitors: MonitorSet, first: bool, rows: list[tuple[int, Sequence]], tables: MonitorTables) -> _Group:
    width = len(monitors.read_at(first=first))
    return _Group(
        sequences=tuple(sequence for _, sequence in rows),
        tokens=index_of([range(token, token + 1) for token, _ in rows], tables.device),
        tables=tables.of(monitors, first=first),
        scores=torch.empty(len(rows), width, device=tables.device),
    )
