"""What a pass reads of the residual stream: readouts, monitors, captures. Reads after steering, changes nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias
from weakref import WeakKeyDictionary

import torch

from steering.injection.apply import Index, index_of, take
from steering.injection.readings import MonitorSet, Reading
from steering.injection.rows import CaptureState, Segment, SteeredRow
from steering.rowwise import dot
from steering.shapes import Float, Int, Residual, Tensor


class ReadingStack:
    """Readings of one layer on the device, one a row."""

    def __init__(self, readings: Sequence[Reading], device: torch.device) -> None:
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
    """Requests with one set of monitors, all at their first token or all at a later one. scores (row, monitor)."""

    def __init__(
        self, monitors: MonitorSet, first: bool, rows: list[tuple[int, SteeredRow]], tables: MonitorTables
    ) -> None:
        """rows: with the token of the pass at which each request is read."""
        self.rows = [row for _, row in rows]
        self.tokens = index_of([range(token, token + 1) for token, _ in rows], tables.device)
        self.tables = tables.of(monitors, first=first)
        self.scores = torch.empty(len(rows), len(monitors.read_at(first=first)), device=tables.device)


class MonitorScores:
    """Prepared on the host for one pass; `read` is called at the layers in `layers`."""

    def __init__(self, segments: Sequence[Segment[SteeredRow]], tables: MonitorTables) -> None:
        members: dict[tuple[MonitorSet, bool], list[tuple[int, SteeredRow]]] = {}
        for segment in segments:
            row = segment.row
            if len(row.monitors) and segment.predicts:
                members.setdefault((row.monitors, not row.generated), []).append((segment.end - 1, row))
        self._groups = [_Group(*key, rows, tables) for key, rows in members.items()]
        self.layers = frozenset(layer for group in self._groups for layer in group.tables)

    def read(self, layer: int, residual: Residual) -> None:
        """residual (token, d_model) float32, as it leaves the layer."""
        for group in self._groups:
            if layer in group.tables:
                columns, stack = group.tables[layer]
                rows = take(residual, group.tokens)[:, None].expand(-1, len(columns), -1)
                group.scores[:, columns] = stack.scores(rows)

    def by_row(self) -> dict[SteeredRow, list[float]]:
        """Returns the scores of each request, in the order of `MonitorSet.read_at`. Waits for the device."""
        return {
            row: scores for group in self._groups for row, scores in zip(group.rows, group.scores.tolist(), strict=True)
        }


@dataclass(slots=True, eq=False)
class _Readings:
    """All live readouts of one layer, one a row of the stack."""

    tokens: Int[Tensor, "reading"]
    stack: ReadingStack
    owners: tuple[tuple[SteeredRow, str], ...]


@dataclass(slots=True, eq=False)
class _Means:
    """All captures of one layer that keep one row: a mean over a window, gathered over the passes of the prompt."""

    tokens: Index
    owners_of_tokens: Int[Tensor, "token"]
    shares: Float[Tensor, "token 1"]
    owners: tuple[CaptureState, ...]


class ReadoutCollector:
    """What a pass reads, monitors included. Prepared on the host for one pass; `read` is called at the layers in `layers`."""

    def __init__(self, segments: Sequence[Segment[SteeredRow]], tables: MonitorTables) -> None:
        self._device, self.monitors = tables.device, MonitorScores(segments, tables)
        self._readings = self._collect_readings(segments)
        captured = [(one, one.row.capture) for one in segments if one.row.capture is not None]
        self._means = self._collect_means([(segment, capture) for segment, capture in captured if capture.reduce])
        self._whole = [(segment, capture) for segment, capture in captured if not capture.reduce]
        whole_layers = {layer for _, capture in self._whole for layer in capture.layers}
        self.layers = self.monitors.layers.union(self._readings, self._means, whole_layers)
        self._values: list[tuple[_Readings, Tensor]] = []

    def _collect_readings(self, segments: Sequence[Segment[SteeredRow]]) -> dict[int, _Readings]:
        found: dict[int, list[tuple[int, SteeredRow, Reading]]] = {}
        for segment in segments:
            if segment.predicts:  # only the position that predicts a token is read
                for reading in segment.row.readings:
                    found.setdefault(reading.layer, []).append((segment.end - 1, segment.row, reading))
        return {
            layer: _Readings(
                tokens=torch.tensor([token for token, _, _ in members], device=self._device),
                stack=ReadingStack([reading for _, _, reading in members], self._device),
                owners=tuple((row, reading.name) for _, row, reading in members),
            )
            for layer, members in found.items()
        }

    def _collect_means(self, captured: list[tuple[Segment[SteeredRow], CaptureState]]) -> dict[int, _Means]:
        by_layer: dict[int, list[tuple[Segment[SteeredRow], CaptureState]]] = {}
        for segment, capture in captured:
            for layer in capture.layers:
                by_layer.setdefault(layer, []).append((segment, capture))
        built: dict[tuple[int, ...], _Means] = {}
        means = {}
        for layer, members in by_layer.items():
            # layers that the same segments want share one set of index tensors
            key = tuple(id(segment) for segment, _ in members)
            means[layer] = built[key] = built.get(key) or self._mean_of(members)
        return means

    def _mean_of(self, captured: list[tuple[Segment[SteeredRow], CaptureState]]) -> _Means:
        windows = [segment.tokens_in(*capture.window) for segment, capture in captured]
        owners = tuple(capture for _, capture in captured)
        counts = torch.tensor([len(window) for window in windows])
        owner_of_token = torch.repeat_interleave(torch.arange(len(owners)), counts).to(self._device)
        spans = [one.window for one in owners]
        shares = torch.tensor([1.0 / (end - start) for start, end in spans], device=self._device)
        return _Means(index_of(windows, self._device), owner_of_token, shares[owner_of_token][:, None], owners)

    def read(self, layer: int, residual: Residual) -> None:
        """residual (token, d_model) float32, as it leaves the layer."""
        if layer in self._readings:
            readings = self._readings[layer]
            self._values.append((readings, readings.stack.scores(residual.index_select(0, readings.tokens))))
        if layer in self.monitors.layers:
            self.monitors.read(layer, residual)
        if layer in self._means:
            self._read_means(layer, self._means[layer], residual)
        for segment, capture in self._whole:
            if layer in capture.layers:
                kept = segment.tokens_in(capture.window[0])
                capture.pieces.setdefault(layer, []).append(residual[kept.start : kept.stop].clone())

    @staticmethod
    def _read_means(layer: int, means: _Means, residual: Residual) -> None:
        sums = residual.new_zeros(len(means.owners), residual.shape[1])
        sums.index_add_(0, means.owners_of_tokens, take(residual, means.tokens) * means.shares)
        for number, capture in enumerate(means.owners):
            capture.pieces.setdefault(layer, []).append(sums[number : number + 1])

    def readouts(self) -> dict[SteeredRow, dict[str, float]]:
        """Returns the scores of each request by name, after the pass."""
        found: dict[SteeredRow, dict[str, float]] = {}
        for readings, values in self._values:
            for (row, name), value in zip(readings.owners, values.tolist(), strict=True):
                found.setdefault(row, {})[name] = value
        return found
