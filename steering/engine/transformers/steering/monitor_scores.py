"""MonitorScores: the scores of all monitors at the positions of a pass that predict tokens. Changes nothing."""

from collections.abc import Mapping
from collections.abc import Sequence as Rows
from typing import TypeAlias
from weakref import WeakKeyDictionary

import torch

from steering.engine.readings import MonitorSet, Reading
from steering.engine.transformers.batch import Batch
from steering.engine.transformers.sequence import Sequence
from steering.engine.transformers.steering.gather import index_of, take
from steering.rowwise import dot
from steering.shapes import Float, Int, Residual, Tensor


class ReadingStack:
    """Readings of one layer on the device, one a row."""

    def __init__(self, readings: Rows[Reading], device: torch.device) -> None:
        self._directions = torch.stack([one.direction for one in readings]).to(device)
        self._middles = torch.tensor([one.middle for one in readings], device=device)
        self._scales = torch.tensor([one.scale for one in readings], device=device)

    def scores(self, rows: Float[Tensor, "*token reading d_model"]) -> Float[Tensor, "*token reading"]:
        """Returns the score of each reading at its row."""
        return (dot(rows, self._directions.expand_as(rows)) - self._middles) / self._scales


Table: TypeAlias = tuple[Int[Tensor, "monitor"], ReadingStack]
"""The monitors of one set that read one layer: their places in the set's order, and what they read."""


class MonitorTables:
    """The directions of monitor sets on the device. They serve every pass while the set is in use."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._built: WeakKeyDictionary[MonitorSet, dict[bool, dict[int, Table]]] = WeakKeyDictionary()

    def of(self, monitors: MonitorSet, *, first: bool) -> Mapping[int, Table]:
        """Returns the tables by layer. first: of the last prompt position, where prompts are scored too."""
        built = self._built.setdefault(monitors, {})
        if first not in built:
            by_layer: dict[int, list[int]] = {}
            read = [monitor.reading for monitor in monitors.read_at(first=first)]
            for column, reading in enumerate(read):
                by_layer.setdefault(reading.layer, []).append(column)
            built[first] = {
                layer: (
                    torch.tensor(columns, device=self.device),
                    ReadingStack([read[column] for column in columns], self.device),
                )
                for layer, columns in by_layer.items()
            }
        return built[first]


class _Group:
    """Sequences with one set of monitors, all at their first token or all at a later one. scores (row, monitor)."""

    def __init__(
        self, monitors: MonitorSet, first: bool, rows: list[tuple[int, Sequence]], tables: MonitorTables
    ) -> None:
        """rows: the token of the pass at which each sequence is read."""
        self.sequences = [sequence for _, sequence in rows]
        self.tokens = index_of([range(token, token + 1) for token, _ in rows], tables.device)
        self.tables = tables.of(monitors, first=first)
        self.scores = torch.empty(len(rows), len(monitors.read_at(first=first)), device=tables.device)


class MonitorScores:
    """Prepared on the host for one pass; `read` is called at the layers in `layers`."""

    def __init__(self, batch: Batch, tables: MonitorTables) -> None:
        members: dict[tuple[MonitorSet, bool], list[tuple[int, Sequence]]] = {}
        for segment in batch.segments:
            sequence = segment.sequence
            if len(sequence.monitors) and segment.predicts:
                key = (sequence.monitors, not sequence.generated)
                members.setdefault(key, []).append((segment.end - 1, sequence))
        self._groups = [_Group(*key, rows, tables) for key, rows in members.items()]
        self.layers = frozenset(layer for group in self._groups for layer in group.tables)

    def read(self, layer: int, residual: Residual) -> None:
        """residual (token, d_model) float32, as it leaves the layer."""
        for group in self._groups:
            if layer in group.tables:
                columns, stack = group.tables[layer]
                rows = take(residual, group.tokens)[:, None].expand(-1, len(columns), -1)
                group.scores[:, columns] = stack.scores(rows)

    def by_sequence(self) -> dict[int, list[float]]:
        """sequence id -> scores in the order of `MonitorSet.read_at`. Waits for the device."""
        return {
            sequence.id: scores
            for group in self._groups
            for sequence, scores in zip(group.sequences, group.scores.tolist(), strict=True)
        }
