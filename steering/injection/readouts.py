"""What a pass reads of the residual stream: readouts, monitors, captures. Reads after steering, changes nothing."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

import torch

from steering.injection.apply import Index, index_of, take
from steering.injection.readings import MonitorSet, Reading
from steering.injection.rows import CaptureState, Segment, SteeredRow
from steering.model.hook_points import layer_of
from steering.rowwise import dot
from steering.shapes import Float, Int, Residual, Tensor
from steering.uploads import uploaded


class ReadingStack:
    """Readings of one layer on the device, one a row."""

    def __init__(self, readings: Sequence[Reading], device: torch.device) -> None:
        self._directions = uploaded(torch.stack([one.direction for one in readings]), device)
        self._middles = uploaded([one.middle for one in readings], device)
        self._scales = uploaded([one.scale for one in readings], device)

    def scores(self, rows: Float[Tensor, "*token reading d_model"]) -> Float[Tensor, "*token reading"]:
        """Returns the score of each reading at its row."""
        return (dot(rows, self._directions.expand_as(rows)) - self._middles) / self._scales


_Table: TypeAlias = tuple[Int[Tensor, "monitor"], ReadingStack]
"""The monitors of one set that read one layer: their places in the set's order, and what they read."""


class MonitorTables:
    """The directions of monitor sets on the device. They serve every pass while the set is in use."""

    def __init__(self, device: torch.device, devices: Sequence[torch.device] | None = None) -> None:
        """device: where scores are kept. devices: of the layers; None: all on that."""
        self.device, self._devices = device, devices
        self._built: WeakKeyDictionary[MonitorSet, dict[bool, dict[int, _Table]]] = WeakKeyDictionary()

    def of(self, monitors: MonitorSet, *, first: bool) -> Mapping[int, _Table]:
        """Returns the tables by layer. first: of the last prompt position, where prompts are scored too."""
        built = self._built.setdefault(monitors, {})
        if first not in built:
            by_layer: dict[int, list[int]] = {}
            read = [monitor.reading for monitor in monitors.read_at(first=first)]
            for place, reading in enumerate(read):
                by_layer.setdefault(reading.layer, []).append(place)
            built[first] = {
                layer: (
                    uploaded(places, self.device),
                    ReadingStack([read[place] for place in places], self.device_of(layer)),
                )
                for layer, places in by_layer.items()
            }
        return built[first]

    def device_of(self, layer: int) -> torch.device:
        """Returns the device of a layer, or of the layer of a point."""
        return self.device if self._devices is None else self._devices[layer_of(layer)]


class _Group(NamedTuple):
    """Requests with one set of monitors, all at their first token or all at a later one. tokens: at which each is read."""

    rows: list[SteeredRow]
    tokens: Index
    tables: Mapping[int, _Table]
    scores: Float[Tensor, "row monitor"]


class MonitorScores:
    """What the monitors of a pass score. `read` is called at the layers in `layers`."""

    def __init__(self, segments: Sequence[Segment[SteeredRow]], tables: MonitorTables) -> None:
        members: dict[tuple[MonitorSet, bool], list[Segment[SteeredRow]]] = {}
        for segment in segments:
            row = segment.row
            if row.monitors.ordered and segment.predicts:
                members.setdefault((row.monitors, not row.generated), []).append(segment)
        self._groups = [
            _Group(
                [one.row for one in group],
                index_of([range(one.end - 1, one.end) for one in group], tables.device),
                tables.of(monitors, first=first),
                torch.empty(len(group), len(monitors.read_at(first=first)), device=tables.device),
            )
            for (monitors, first), group in members.items()
        ]
        self.layers = frozenset(layer for group in self._groups for layer in group.tables)

    def read(self, layer: int, residual: Residual) -> None:
        """residual: float32, as it leaves the layer."""
        for group in self._groups:
            if layer in group.tables:
                places, stack = group.tables[layer]
                rows = take(residual, group.tokens)[:, None].expand(-1, len(places), -1)
                group.scores[:, places] = stack.scores(rows).to(group.scores.device)

    def by_row(self) -> dict[SteeredRow, list[float]]:
        """Returns the scores of each request, in the order of `MonitorSet.read_at`. Waits for the device."""
        return {
            row: scores for group in self._groups for row, scores in zip(group.rows, group.scores.tolist(), strict=True)
        }


class _Readings(NamedTuple):
    """All live readouts of one layer, one a row of the stack."""

    tokens: Int[Tensor, "reading"]
    stack: ReadingStack
    owners: tuple[tuple[SteeredRow, str], ...]


class _Window(NamedTuple):
    """The positions of a text, from `begin` to before `end`, of which a layer keeps the mean."""

    segment: Segment[SteeredRow]
    capture: CaptureState
    begin: int
    end: int


class _Means(NamedTuple):
    """All captures of one layer that keep one row: a mean over a window, gathered over the passes of the prompt."""

    tokens: Index
    owners_of_tokens: Int[Tensor, "token"]
    shares: Float[Tensor, "token 1"]
    owners: tuple[CaptureState, ...]


class ReadoutCollector:
    """What a pass reads, monitors included. Prepared on the host for one pass; `read` is called at the layers in `layers`."""

    def __init__(self, segments: Sequence[Segment[SteeredRow]], tables: MonitorTables) -> None:
        self._device, self.monitors = tables.device, MonitorScores(segments, tables)
        readings: dict[int, list[tuple[int, SteeredRow, Reading]]] = {}
        means: dict[int, list[_Window]] = {}
        self._whole: list[tuple[Segment[SteeredRow], CaptureState]] = []
        for segment in segments:
            capture = segment.row.capture
            for reading in segment.row.readings if segment.row.readings and segment.predicts else ():
                readings.setdefault(reading.layer, []).append((segment.end - 1, segment.row, reading))
            if capture is not None and not capture.reduce:
                self._whole.append((segment, capture))
            elif capture is not None:
                for layer in capture.layers:
                    means.setdefault(layer, []).append(_Window(segment, capture, *capture.window_at(layer)))
        self._readings = {
            layer: _Readings(
                uploaded([token for token, _, _ in members], tables.device_of(layer)),
                ReadingStack([reading for _, _, reading in members], tables.device_of(layer)),
                tuple((row, reading.name) for _, row, reading in members),
            )
            for layer, members in readings.items()
        }
        # layers at which the same windows are read share one set of index tensors
        built: dict[tuple[_Window, ...], _Means] = {}
        self._means = {}
        for layer, members in means.items():
            key = tuple(members)
            self._means[layer] = built[key] = built.get(key) or self._mean_of(members)
        whole = {layer for _, capture in self._whole for layer in capture.layers}
        self.layers = self.monitors.layers.union(self._readings, self._means, whole)
        self._values: list[tuple[_Readings, Tensor]] = []

    def _mean_of(self, windows: list[_Window]) -> _Means:
        tokens = [one.segment.tokens_in(one.begin, one.end) for one in windows]
        counts = torch.tensor([len(part) for part in tokens])
        owner_of_token = uploaded(torch.repeat_interleave(torch.arange(len(windows)), counts), self._device)
        shares = uploaded([1.0 / (one.end - one.begin) for one in windows], self._device)
        owners = tuple(one.capture for one in windows)
        return _Means(index_of(tokens, self._device), owner_of_token, shares[owner_of_token][:, None], owners)

    def read(self, layer: int, residual: Residual) -> None:
        """residual: float32, as it leaves the layer."""
        if layer in self._readings:
            readings = self._readings[layer]
            self._values.append((readings, readings.stack.scores(residual.index_select(0, readings.tokens))))
        if layer in self.monitors.layers:
            self.monitors.read(layer, residual)
        if layer in self._means:
            means = self._means[layer]
            sums = residual.new_zeros(len(means.owners), residual.shape[1])
            owners, shares = means.owners_of_tokens.to(residual.device), means.shares.to(residual.device)
            sums.index_add_(0, owners, take(residual, means.tokens) * shares)
            for number, capture in enumerate(means.owners):
                capture.pieces.setdefault(layer, []).append(sums[number : number + 1])
        for segment, capture in self._whole:
            if layer in capture.layers:
                kept = segment.tokens_in(capture.window[0])
                capture.pieces.setdefault(layer, []).append(residual[kept.start : kept.stop].clone())

    def readouts(self) -> dict[SteeredRow, dict[str, float]]:
        """Returns the scores of each request by name, after the pass."""
        found: dict[SteeredRow, dict[str, float]] = {}
        owners = [owner for readings, _ in self._values for owner in readings.owners]
        # one wait for all layers
        values = torch.cat([values.to(self._device) for _, values in self._values]).tolist() if owners else []
        for (row, name), value in zip(owners, values, strict=True):
            found.setdefault(row, {})[name] = value
        return found
