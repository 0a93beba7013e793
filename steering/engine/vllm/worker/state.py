"""WorkerSteering: the steering of all requests of one worker, whichever model runner of vLLM calls it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from traceback import format_exception

import torch

from steering.engine.vllm.messages import FailureMessage, Message, MonitorReading, RequestSteering, TokenMessage
from steering.engine.vllm.worker.measures import BlockMeasures
from steering.engine.vllm.worker.rows import WorkerRow, new_row
from steering.engine.vllm.worker.step import Step
from steering.injection.injector import Injector
from steering.injection.readings import NO_MONITORS, Monitor, MonitorSet, Reading
from steering.injection.readouts import MonitorTables
from steering.injection.slots import MAX_THRESHOLDS
from steering.plan.types import UNSTEERED, SteeringPlan
from steering.shapes import Float, Int, Tensor


@dataclass(frozen=True, slots=True, eq=False)
class StepView:
    """What a step of vLLM computes, as either model runner knows it.

    request_ids: in the order of their tokens. starts: flat token at which each begins, and the end. first: position of
    each request's first token. positions: of every token of the pass, padded ones included.
    """

    request_ids: Sequence[str]
    starts: Sequence[int]
    first: Sequence[int]
    positions: Int[Tensor, "token"]


class WorkerSteering:
    """Rows of the requests by vLLM's id, plans and readings by the key under which they were sent.

    layers: the decoder layers of this pipeline stage, by their index in the whole model. calls: how often the hook of each
    ran; the engine refuses to serve where one never did. resumed: how often a request computed positions again. outbox: messages that are to be sent.
    """

    def __init__(self, layers: frozenset[int], layer_count: int, d_model: int, device: torch.device) -> None:
        self.layers, self.d_model = layers, d_model
        self.calls = dict.fromkeys(layers, 0)
        self.resumed = 0
        self.outbox: list[Message] = []
        self.step: Step | None = None
        self._device = device
        self._injector = Injector(layer_count, d_model, device)
        self._measures = BlockMeasures()
        self._rows: dict[str, WorkerRow] = {}
        self._plans: dict[str, SteeringPlan] = {"": UNSTEERED}
        self._readings: dict[str, tuple[Reading, ...]] = {"": ()}
        self._monitors: dict[str, MonitorSet] = {"": NO_MONITORS}
        self._tables = MonitorTables(device)

    def put_plan(self, key: str, plan: SteeringPlan) -> None:
        """Keeps a plan. Raises what applying it raises: it is tried on one token of each phase."""
        here = replace(plan, layers={layer: one for layer, one in plan.layers.items() if layer in self.layers})
        if len(here.thresholds) > MAX_THRESHOLDS:
            raise ValueError(f"at most {MAX_THRESHOLDS} thresholds, got {len(here.thresholds)}")
        self._try(here)
        self._plans[key] = here

    def put_readings(self, key: str, readings: tuple[Reading, ...]) -> None:
        """Keeps live readouts."""
        self._readings[key] = readings

    def put_monitors(self, key: str, monitors: tuple[MonitorReading, ...]) -> None:
        """Keeps what monitors read. Their bounds and actions are the server's."""
        self._monitors[key] = MonitorSet([_monitor(one) for one in monitors])

    def forget(self, keys: Sequence[str]) -> None:
        """Drops plans, readings and monitors; requests that run keep theirs."""
        for key in keys:
            self._plans.pop(key, None)
            self._readings.pop(key, None)
            self._monitors.pop(key, None)

    def _try(self, plan: SteeringPlan) -> None:
        """Applies a plan to a prompt of two tokens and to one generated token, apart from all requests."""
        steering = RequestSteering(key="", prompt_length=2)
        row = new_row([0, 0], steering, plan, (), self.layers)
        injector = Injector(max(self.layers) + 1, self.d_model, self._device)
        injector.admit(row)
        for first, length in ((0, 2), (2, 1)):
            positions = torch.arange(first, first + length, device=self._device)
            step = Step(injector, self._tables, positions)
            step.add(row, 0, first, 0, length)
            step.prepare()
            for layer in sorted(self.layers):
                step.apply(layer, torch.ones(length, self.d_model, device=self._device))
            step.finish()
        injector.release(row)

    def admit(self, request_id: str, prompt: list[int], steering: RequestSteering, cached: int = 0) -> None:
        """Gives a new request its row; `cached` positions of it are in the prefix cache. A failure ends the request, not
        the worker."""
        try:
            plan, readings = self._plans[steering.plan], self._readings[steering.readings]
            monitors = self._monitors[steering.monitors]
            row = new_row(prompt, steering, plan, readings, self.layers, monitors)
            row.cached = cached
            self._injector.admit(row)
            self._rows[request_id] = row
        except Exception as error:
            self._report_failure(steering.key, error)

    def release(self, request_ids: Sequence[str]) -> None:
        """Reports on requests that have left vLLM's scheduler, and frees their rows."""
        for request_id in request_ids:
            row = self._rows.pop(request_id, None)
            if row is None:
                continue
            try:
                self._injector.release(row)
                self._measures.restore(row)
                self.outbox.append(row.report(self.layers))
            except Exception as error:  # one request's report must not end the worker
                self._injector.abandon(row)
                self._report_failure(row.key, error)

    def begin(self, view: StepView) -> None:
        """Prepares the steering of a pass. A request whose steering cannot be prepared ends alone."""
        self.step = None
        step = self._collected(view)
        if not step.rows:
            return
        if not self._guarded([], step.prepare):
            step = self._without_failing(view, step)
            if not step.rows or not self._guarded(step.rows, step.prepare):
                return
        self.step = step

    def _collected(self, view: StepView) -> Step:
        step = Step(self._injector, self._tables, view.positions)
        for number, row in self._running(view):
            self._guarded([row], partial(self._add, step, row, number, view))
        return step

    def _running(self, view: StepView) -> Iterator[tuple[int, WorkerRow]]:
        """Yields the requests of a pass that have not failed, with their numbers in it."""
        for number, request_id in enumerate(view.request_ids):
            row = self._rows.get(request_id)
            if row is not None and not row.failed:
                yield number, row

    def _add(self, step: Step, row: WorkerRow, number: int, view: StepView) -> None:
        start, end, first = int(view.starts[number]), int(view.starts[number + 1]), int(view.first[number])
        self.resumed += first < row.computed
        if row.restarts(first):
            self._restart(row)
        if start < end:
            step.add(row, number, first, start, end)

    def _without_failing(self, view: StepView, failed: Step) -> Step:
        """Prepares every request by itself to find those that fail, and returns a step of the others."""
        failed.undo()
        for number, row in self._running(view):
            alone = Step(self._injector, self._tables, view.positions)
            self._add(alone, row, number, view)
            self._guarded([row], alone.prepare)
            alone.undo()
        return self._collected(view)

    def _restart(self, row: WorkerRow) -> None:
        """Forgets what was decided and measured of a request that begins again."""
        self._injector.release(row)
        self._injector.admit(row)
        row.doses.reset()
        row.computed = 0
        capture = row.capture
        if capture is not None:
            capture.pieces.clear()
            capture.logits.clear()

    def act(self, layer: int, hidden: Float[Tensor, "token d_model"], residual: Tensor | None) -> None:
        """Steers and reads the residual stream hidden (+ residual) behind a layer; changes `hidden` in place."""
        self.calls[layer] += 1
        step = self.step
        if step is None or layer not in step.layers:
            return
        if not self._guarded(step.rows, lambda: step.act(layer, hidden, residual)):
            self.step = None

    def end(self) -> None:
        """After a pass: keeps decisions, and sends what was read at the tokens that were predicted."""
        step, self.step = self.step, None
        if step is not None:
            self._guarded(step.rows, lambda: self._deliver(step))

    def _deliver(self, step: Step) -> None:
        step.finish()
        for row in step.rows:
            self._measures.store(row)
        readouts, scores = step.readers.readouts(), step.readers.monitors.by_row()
        finite = None if step.finite is None else step.finite.tolist()
        for row, number, index in step.predictions:
            readout = readouts.get(row, {})
            known = row.scores_at(scores.get(row, ()), self.layers, first=index == 0)
            self.outbox.append(TokenMessage(row.key, index, finite is None or finite[number], readout, known))

    def _guarded(self, rows: Sequence[WorkerRow], work: Callable[[], None]) -> bool:
        """Runs work. An error ends these requests; nothing may leave the worker, where it would end all of them."""
        try:
            work()
        except Exception as error:
            for row in rows:
                row.failed = True
                self._report_failure(row.key, error)
            return False
        return True

    def _report_failure(self, key: str, error: Exception) -> None:
        self.outbox.append(FailureMessage(key, "".join(format_exception(error))))


def _monitor(one: MonitorReading) -> Monitor:
    return Monitor(one.reading.name, "", "", one.reading, above=True, bound=0.0, at=one.at)
