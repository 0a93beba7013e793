"""ReadoutCollector: what a pass reads of the residual stream: readouts, monitors, captures. Reads after steering, changes nothing."""

from dataclasses import dataclass

import torch

from steering.engine.readings import Reading
from steering.engine.transformers.batch import Batch, Segment
from steering.engine.transformers.sequence import CaptureState, Sequence
from steering.engine.transformers.steering.monitor_scores import MonitorScores, ReadingStack
from steering.shapes import Float, Int, Residual, Tensor


@dataclass(slots=True, eq=False)
class _Readings:
    """All live readouts of one layer, one a row of the stack."""

    tokens: Int[Tensor, "reading"]
    stack: ReadingStack
    owners: tuple[tuple[Sequence, str], ...]


@dataclass(slots=True, eq=False)
class _Means:
    """All captures of one layer that keep one row: a mean over a window, gathered over the passes of the prompt."""

    tokens: Int[Tensor, "token"]
    owners_of_tokens: Int[Tensor, "token"]
    shares: Float[Tensor, "token 1"]
    owners: tuple[CaptureState, ...]


class ReadoutCollector:
    """Prepared on the host for one pass; `read` is called at the layers in `layers`."""

    def __init__(self, batch: Batch, device: torch.device, monitors: MonitorScores) -> None:
        self._device, self._monitors = device, monitors
        self._readings = self._collect_readings(batch)
        captured = [(one, one.sequence.capture) for one in batch.segments if one.sequence.capture is not None]
        self._means = self._collect_means([(segment, capture) for segment, capture in captured if capture.reduce])
        self._whole = [(segment, capture) for segment, capture in captured if not capture.reduce]
        whole_layers = {layer for _, capture in self._whole for layer in capture.spec.layers}
        self.layers = monitors.layers.union(self._readings, self._means, whole_layers)
        self._values: list[tuple[_Readings, Tensor]] = []

    def _collect_readings(self, batch: Batch) -> dict[int, _Readings]:
        found: dict[int, list[tuple[int, Sequence, Reading]]] = {}
        for segment in batch.segments:
            if segment.predicts:  # only the position that predicts a token is read
                for reading in segment.sequence.readings:
                    found.setdefault(reading.layer, []).append((segment.end - 1, segment.sequence, reading))
        return {
            layer: _Readings(
                tokens=torch.tensor([token for token, _, _ in members], device=self._device),
                stack=ReadingStack([reading for _, _, reading in members], self._device),
                owners=tuple((sequence, reading.name) for _, sequence, reading in members),
            )
            for layer, members in found.items()
        }

    def _collect_means(self, captured: list[tuple[Segment, CaptureState]]) -> dict[int, _Means]:
        by_layer: dict[int, list[tuple[Segment, CaptureState]]] = {}
        for segment, capture in captured:
            for layer in capture.spec.layers:
                by_layer.setdefault(layer, []).append((segment, capture))
        built: dict[tuple[int, ...], _Means] = {}
        means = {}
        for layer, members in by_layer.items():
            # layers that the same segments want share one set of index tensors
            key = tuple(id(segment) for segment, _ in members)
            means[layer] = built[key] = built.get(key) or self._mean_of(members)
        return means

    def _mean_of(self, captured: list[tuple[Segment, CaptureState]]) -> _Means:
        tokens: list[int] = []
        owners: list[int] = []
        shares: list[float] = []
        for number, (segment, capture) in enumerate(captured):
            start, end = capture.window
            here = segment.tokens_in(start, end)
            tokens += here
            owners += [number] * len(here)
            shares += [1.0 / (end - start)] * len(here)
        return _Means(
            tokens=torch.tensor(tokens, dtype=torch.int64, device=self._device),
            owners_of_tokens=torch.tensor(owners, dtype=torch.int64, device=self._device),
            shares=torch.tensor(shares, device=self._device)[:, None],
            owners=tuple(capture for _, capture in captured),
        )

    def read(self, layer: int, residual: Residual) -> None:
        """residual (token, d_model) float32, as it leaves the layer."""
        if layer in self._readings:
            readings = self._readings[layer]
            self._values.append((readings, readings.stack.scores(residual.index_select(0, readings.tokens))))
        if layer in self._monitors.layers:
            self._monitors.read(layer, residual)
        if layer in self._means:
            self._read_means(layer, self._means[layer], residual)
        for segment, capture in self._whole:
            if layer in capture.spec.layers:
                kept = segment.tokens_in(capture.window[0])
                capture.pieces.setdefault(layer, []).append(residual[kept.start : kept.stop].clone())

    @staticmethod
    def _read_means(layer: int, means: _Means, residual: Residual) -> None:
        sums = residual.new_zeros(len(means.owners), residual.shape[1])
        sums.index_add_(0, means.owners_of_tokens, residual.index_select(0, means.tokens) * means.shares)
        for number, capture in enumerate(means.owners):
            capture.pieces.setdefault(layer, []).append(sums[number : number + 1])

    def readouts(self) -> dict[int, dict[str, float]]:
        """sequence id -> name -> score, after the pass."""
        found: dict[int, dict[str, float]] = {}
        for readings, values in self._values:
            for (sequence, name), value in zip(readings.owners, values.tolist(), strict=True):
                found.setdefault(sequence.id, {})[name] = value
        return found
