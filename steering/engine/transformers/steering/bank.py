"""SteeringBank: the state that steering keeps on the device for each running request, in one row of a table."""

from collections.abc import Iterable, Mapping
from math import nan

import torch

from steering.engine.transformers.batch import Segment
from steering.plan.holds import MAX_HOLDS
from steering.plan.types import Phase, SteeringPlan
from steering.shapes import Float, Int, Residual, Tensor

MAX_THRESHOLDS = 64
"""Columns of the decision state; a request's plan may have no more thresholds."""
UNSTEERED_ROW = 0
"""The row of every request without steering: its static adds are zeros."""
_FIRST_ROWS = 8
MAX_NUMBERS = 1 << 24
"""float32 numbers of the rows that StaticRows gathers, 64 MB. A pass with more of them, which reads prompts, gathers layer by layer."""
NEW_ROW: Mapping[str, float] = {
    "decisions": 0,
    "prompt_scores": 0.0,
    "scores": nan,
    "strengths": 0.0,
    "errors": nan,
    "readout_sums": 0.0,
}
"""The tables with one row for each request, and what the row of a new request holds."""


class SteeringBank:
    """Static adds, condition decisions and controllers by row. A request has one row from admission to release.

    static_adds: (phase, layer, row, d_model), the sums of `LayerSteering.static_sum`; adding a row costs the same however
    many vectors it sums. decisions, prompt_scores, scores: (row, threshold), see ConditionEvaluator.
    Of the controllers, by `hold_columns`: strengths (row, column): for the next token, 0 before the first. errors (row, column): set
    point minus readout of the last token, NaN before the first. readout_sums (row, column, 3): of the readouts, of the strengths
    that were used, and of the tokens.
    layout: changes when the tables are given other memory, so that indices into them must be computed again.
    """

    def __init__(self, layer_count: int, d_model: int, device: torch.device) -> None:
        self.device = device
        self.static_adds = torch.zeros(len(Phase), layer_count, _FIRST_ROWS, d_model, device=device)
        self.decisions = torch.zeros(_FIRST_ROWS, MAX_THRESHOLDS, dtype=torch.int8, device=device)
        self.prompt_scores = torch.zeros(_FIRST_ROWS, MAX_THRESHOLDS, device=device)
        self.scores = torch.zeros(_FIRST_ROWS, MAX_THRESHOLDS, device=device)
        self.strengths = torch.zeros(_FIRST_ROWS, MAX_HOLDS, device=device)
        self.errors = torch.zeros(_FIRST_ROWS, MAX_HOLDS, device=device)
        self.readout_sums = torch.zeros(_FIRST_ROWS, MAX_HOLDS, 3, device=device)
        self.layout = 0
        self._free = list(range(_FIRST_ROWS - 1, UNSTEERED_ROW, -1))
        self._layers: dict[int, frozenset[int]] = {}

    def allocate(self, plan: SteeringPlan) -> int:
        """Returns the row of a new request, with its static adds in place and nothing decided."""
        if plan.empty:
            return UNSTEERED_ROW
        if not self._free:
            self._grow()
        added = [(layer, one.static_sum) for layer, one in plan.layers.items() if one.static_sum is not None]
        sums = {layer: values.to(self.device) for layer, values in added}
        row = self._free.pop()
        self._layers[row] = frozenset(sums)
        for layer, values in sums.items():
            self.static_adds[:, layer, row].copy_(values)
        for name, value in NEW_ROW.items():
            getattr(self, name)[row].fill_(value)
        return row

    def release(self, row: int) -> None:
        """Frees a row. Harmless for the row of unsteered requests."""
        if row != UNSTEERED_ROW:
            for layer in self._layers.pop(row):  # one by one: views need no memory, which may be short now
                self.static_adds[:, layer, row].zero_()
            self._free.append(row)

    def _grow(self) -> None:
        rows = self.static_adds.shape[2]
        # all before the first is replaced, since memory may be short; `allocate` sets the new rows
        grown = {name: torch.cat([getattr(self, name)] * 2) for name in NEW_ROW}
        self.static_adds = torch.cat([self.static_adds, torch.zeros_like(self.static_adds)], dim=2)
        for name, table in grown.items():
            setattr(self, name, table)
        self._free = list(range(2 * rows - 1, rows - 1, -1))
        self.layout += 1

    def layers_of(self, rows: tuple[int, ...]) -> frozenset[int]:
        """Layers at which any of these rows has static adds."""
        return frozenset().union(*(self._layers.get(row, frozenset()) for row in rows))

    def row_indices(self, segments: tuple[Segment, ...], tokens: int) -> Int[Tensor, "token"]:
        """Index of each token's row of static adds at layer 0, counted through phases, layers and rows. Tokens of no
        segment have the row of unsteered requests."""
        _, layers, rows, _ = self.static_adds.shape
        indices = [UNSTEERED_ROW] * tokens
        for segment in segments:
            row, token = segment.sequence.row, segment.start
            if row != UNSTEERED_ROW:
                for run in segment.sequence.dose.runs(segment.first, segment.length):
                    indices[token : token + run.length] = [run.phase * layers * rows + row] * run.length
                    token += run.length
        return torch.tensor(indices, device=self.device)

    def rows_at(self, layer: int, indices: Int[Tensor, "token"]) -> Residual:
        """The static adds of each token at a layer. indices: see `row_indices`."""
        # one gather of whole rows is many times faster than indexing by phase and row
        _, _, rows, d_model = self.static_adds.shape
        return self.static_adds.view(-1, d_model)[layer * rows :].index_select(0, indices)


def norms_of(residual: Residual) -> Float[Tensor, "token"]:
    """|r| of each token, at least 1e-12 so that it can be divided by."""
    norms: Tensor = torch.linalg.vector_norm(residual, dim=-1)
    return norms.clamp_min(1e-12)


class StaticRows:
    """The static adds of a pass, gathered for all its layers at once, for an engine that adds them to a stream of its own.

    Passes of decode tokens repeat with the same requests, so the rows are gathered once for many passes. A layer then costs
    three small operations in place of about ten, and the norms of all layers are taken together after the pass.
    """

    def __init__(
        self, bank: SteeringBank, layers: Iterable[int], indices: Int[Tensor, "token"], dtype: torch.dtype
    ) -> None:
        """indices: see `SteeringBank.row_indices`. dtype: of the stream that they are added to."""
        self.layers = tuple(sorted(layers))
        self._rows = {layer: bank.rows_at(layer, indices).to(dtype) for layer in self.layers}
        width = bank.static_adds.shape[-1]
        self._streams = torch.zeros(len(self.layers), len(indices), width, device=indices.device)
        self._stream_of = dict(zip(self.layers, self._streams.unbind(0), strict=True))
        self._indices = torch.tensor(self.layers, dtype=torch.int64, device=indices.device)  # once, for all passes

    def add(self, layer: int, hidden: Float[Tensor, "token d_model"], residual: Tensor | None) -> None:
        """Adds the rows of a layer to the stream hidden (+ residual) by changing `hidden` in place."""
        stream = self._stream_of[layer]
        stream.copy_(hidden)
        if residual is not None:
            stream += residual
        hidden += self._rows[layer]

    def measure(self, sums: Float[Tensor, "layer token"]) -> None:
        """After a pass: adds the 1 / |r| that the rows found at each layer and token to the sums of all layers."""
        norms = norms_of(self._streams.flatten(0, 1)).view(self._streams.shape[:2])
        sums[self._indices] += norms.reciprocal()
