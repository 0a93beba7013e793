"""Step: the steering of one pass of vLLM's model runner."""

from collections.abc import Iterator, Sequence

import torch

from steering.engine.vllm.worker.rows import WorkerRow
from steering.injection.injector import Injection, Injector
from steering.injection.readouts import MonitorTables, ReadoutCollector
from steering.injection.rows import Segment, SteeringHistory
from steering.shapes import Bool, Float, Int, Residual, Tensor


class Step:
    """Collects the rows of a pass, then acts behind each layer.

    rows: the requests in it. layers: where anything acts or is read. predictions: (row, number of the request in vLLM's
    batch, index of the token) of each request whose next token is chosen from this pass. finite: by request in vLLM's
    batch, set where the last residuals are known.
    """

    def __init__(self, injector: Injector, tables: MonitorTables, positions: Int[Tensor, "token"]) -> None:
        self.rows: list[WorkerRow] = []
        self.predictions: list[tuple[WorkerRow, int, int]] = []
        self.layers: frozenset[int] = frozenset()
        self.finite: Bool[Tensor, request] | None = None
        self._injector, self._tables, self._positions = injector, tables, positions
        self._segments: list[Segment[WorkerRow]] = []
        self._computed_before: list[int] = []
        self._injection: Injection
        self._held: list[tuple[SteeringHistory, Tensor]] = []
        self.readers: ReadoutCollector

    def add(self, row: WorkerRow, number: int, first: int, start: int, end: int) -> None:
        """Adds a request's flat tokens [start, end), whose positions begin at `first`."""
        before = row.computed
        segments = list(row.segments(first, start, end))
        self._computed_before.append(before)
        self.rows.append(row)
        self._segments += segments
        last = segments[-1]
        if last.predicts:
            self.predictions.append((row, number, last.last_position - (row.prompt_length - 1)))

    def undo(self) -> None:
        """Has the rows forget this step, which is not run."""
        for row, computed in zip(self.rows, self._computed_before, strict=True):
            row.computed = computed

    def prepare(self) -> None:
        """Prepares everything on the host that the layers need."""
        self._injection = self._injector.prepare(self._segments, len(self._positions))
        self._injection.begin(self._positions)
        self.readers = ReadoutCollector(self._segments, self._tables)
        self.layers = self._injection.layers | self.readers.layers
        self._held = list(self._strengths())

    def _strengths(self) -> Iterator[tuple[SteeringHistory, Tensor]]:
        """Yields what the controllers of each request act with in this step, where it is kept."""
        rows = [one.row for one in self._segments if one.row.history is not None and one.predicts]
        held = [one for one in rows if any(of.holds for of in one.plan.interventions)]
        if held:
            slots = torch.tensor([one.slot for one in held], device=self._positions.device)
            for row, strengths in zip(held, self._injector.slots.strengths[slots], strict=True):
                assert row.history is not None
                yield row.history, strengths

    def act(self, layer: int, hidden: Residual, residual: Residual | None) -> None:
        """Applies `apply` to the stream hidden (+ residual), in float32, and adds the difference to `hidden`."""
        stream = hidden.float() if residual is None else hidden.float() + residual.float()
        after = self.apply(layer, stream)
        if after is not stream:
            hidden += (after - stream).to(hidden.dtype)

    def apply(self, layer: int, stream: Residual) -> Residual:
        """stream (token, d_model) float32 as it leaves the layer -> as steering leaves it. Readouts see the result."""
        after = self._injection.apply(layer, stream) if layer in self._injection.layers else stream
        if layer in self.readers.layers:
            self.readers.read(layer, after)
        return after

    def note_last(self, hidden: Float[Tensor, "request d_model"]) -> None:
        """hidden: what the head reads, one row a request. A sum is finite only if all of its numbers are."""
        self.finite = torch.isfinite(hidden.float().sum(dim=-1))

    def logit_rows(self) -> Sequence[Segment[WorkerRow]]:
        """The segments of captures that want logits."""
        return [one for one in self._segments if one.wants_logits]

    def finish(self) -> None:
        """After the pass: stores decisions and sums."""
        self._injection.finish()
        for history, strengths in self._held:
            history.add_strengths(strengths[None])
