"""ReadoutCollector: what a pass reads of the residual stream: readouts, monitors, captures. Reads after steering, changes nothing."""

from dataclasses import dataclass

import torch

from steering.engine.transformers.batch import Batch, Segment
from steering.engine.transformers.sequence import Sequence
from steering.engine.transformers.steering.monitor_scores import MonitorScores
from steering.rowwise import dot
from steering.shapes import Float, Int, Residual, Tensor


@dataclass(slots=True, eq=False)
class _Readings:
    """All live readouts of one layer, one a row of the stack."""

    tokens: Int[Tensor, "reading"]
    directions: Float[Tensor, "reading d_model"]
    scales: Float[Tensor, "reading"]
    middles: Float[Tensor, "reading"]
    owners: tuple[tuple[Sequence, str], ...]


@dataclass(slots=True, eq=False)
class _Means:
    """All captures of one layer that keep one row: a mean over a window, gathered over the passes of the prompt."""

    tokens: Int[Tensor, "token"]
    owners_of_tokens: Int[Tensor, "token"]
    shares: Float[Tensor, "token 1"]
    owners: tuple[Sequence, ...]


class ReadoutCollector:
    """Prepared on the host for one pass; `read` is called at the layers in `layers`."""

    def __init__(self, batch: Batch, device: torch.device, monitors: MonitorScores | None = None) -> None:
        self._device, self._monitors = device, monitors
        self._readings = self._collect_readings(batch)
        captured = [s for s in batch.segments if s.sequence.capture is not None]
        self._means = self._collect_means([s for s in captured if s.sequence.capture.reduce])  # type: ignore[union-attr]
        self._whole = [s for s in captured if not s.sequence.capture.reduce]  # type: ignore[union-attr]
        whole_layers = {layer for s in self._whole for layer in s.sequence.capture.spec.layers}  # type: ignore[union-attr]
        self.layers = frozenset(self._readings) | frozenset(self._means) | whole_layers
        if monitors is not None:
            self.layers |= monitors.layers
        self._values: list[tuple[_Readings, Tensor]] = []

    def _collect_readings(self, batch: Batch) -> dict[int, _Readings]:
        found: dict[int, list[tuple[int, Sequence, int]]] = {}
        for segment in batch.segments:
            sequence = segment.sequence
            if not segment.predicts:  # only the position that predicts a token is read
                continue
            for number, reading in enumerate(sequence.readings):
                found.setdefault(reading.layer, []).append((segment.end - 1, sequence, number))
        return {layer: self._stack(members) for layer, members in found.items()}

    def _stack(self, members: list[tuple[int, Sequence, int]]) -> _Readings:
        readings = [sequence.readings[number] for _, sequence, number in members]
        return _Readings(
            tokens=torch.tensor([token for token, _, _ in members], device=self._device),
            directions=torch.stack([reading.direction for reading in readings]).to(self._device),
            scales=torch.tensor([reading.scale for reading in readings], device=self._device),
            middles=torch.tensor([reading.middle for reading in readings], device=self._device),
            owners=tuple((sequence, r.name) for (_, sequence, _), r in zip(members, readings, strict=True)),
        )

    def _collect_means(self, segments: list[Segment]) -> dict[int, _Means]:
        by_layer: dict[int, list[Segment]] = {}
        for segment in segments:
            assert segment.sequence.capture is not None
            for layer in segment.sequence.capture.spec.layers:
                by_layer.setdefault(layer, []).append(segment)
        built: dict[tuple[int, ...], _Means] = {}
        means = {}
        for layer, members in by_layer.items():
            # layers that the same segments want share one set of index tensors
            key = tuple(id(segment) for segment in members)
            if key not in built:
                built[key] = self._mean_of(members)
            means[layer] = built[key]
        return means

    def _mean_of(self, segments: list[Segment]) -> _Means:
        tokens: list[int] = []
        owners: list[int] = []
        shares: list[float] = []
        for number, segment in enumerate(segments):
            assert segment.sequence.capture is not None
            start, end = segment.sequence.capture.window
            low, high = max(start, segment.first), min(end, segment.last_position + 1)
            offset = segment.start - segment.first
            tokens.extend(range(low + offset, high + offset))
            owners.extend([number] * max(high - low, 0))
            shares.extend([1.0 / (end - start)] * max(high - low, 0))
        return _Means(
            tokens=torch.tensor(tokens, dtype=torch.int64, device=self._device),
            owners_of_tokens=torch.tensor(owners, dtype=torch.int64, device=self._device),
            shares=torch.tensor(shares, device=self._device)[:, None],
            owners=tuple(segment.sequence for segment in segments),
        )

    def read(self, layer: int, residual: Residual) -> None:
        """residual (token, d_model) float32, as it leaves the layer."""
        if layer in self._readings:
            readings = self._readings[layer]
            rows = residual.index_select(0, readings.tokens)
            projections = dot(rows, readings.directions)
            self._values.append((readings, (projections - readings.middles) / readings.scales))
        if self._monitors is not None and layer in self._monitors.layers:
            self._monitors.read(layer, residual)
        if layer in self._means:
            self._read_means(layer, self._means[layer], residual)
        for segment in self._whole:
            capture = segment.sequence.capture
            assert capture is not None
            if layer in capture.spec.layers:
                kept = segment.tokens_from(capture.window[0])
                capture.pieces.setdefault(layer, []).append(residual[kept.start : kept.stop].clone())

    @staticmethod
    def _read_means(layer: int, means: _Means, residual: Residual) -> None:
        sums = residual.new_zeros(len(means.owners), residual.shape[1])
        sums.index_add_(0, means.owners_of_tokens, residual.index_select(0, means.tokens) * means.shares)
        for number, sequence in enumerate(means.owners):
            assert sequence.capture is not None
            sequence.capture.pieces.setdefault(layer, []).append(sums[number : number + 1])

    def readouts(self) -> dict[int, dict[str, float]]:
        """sequence id -> name -> score, after the pass."""
        found: dict[int, dict[str, float]] = {}
        for readings, values in self._values:
            for (sequence, name), value in zip(readings.owners, values.tolist(), strict=True):
                found.setdefault(sequence.id, {})[name] = value
        return found
