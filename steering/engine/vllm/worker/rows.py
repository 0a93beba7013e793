"""WorkerRow: one request inside a worker, the segments of it that a step computes, and what is reported of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isnan, nan

import torch

from steering.engine.vllm.messages import CaptureWindow, MeasuredDoses, ReportMessage, RequestSteering
from steering.errors import InternalError
from steering.injection.readings import NO_MONITORS, MonitorSet, Reading
from steering.injection.rows import CaptureState, Segment, SteeredRow, SteeringHistory
from steering.plan.scope import follows_single_tokens
from steering.plan.types import SteeringPlan
from steering.shapes import Tensor

UNKNOWN_TOKEN = 0
"""Stands for a generated token, whose id steering does not need: scopes that name token ids are refused."""


def computes_whole(plan: SteeringPlan) -> bool:
    """Whether a request must compute each of its positions itself: what is decided or summed at one counts later.

    The server has such requests skip the prefix cache, also when they are resumed after a preemption.
    """
    return not plan.reusable or bool(plan.thresholds) or any(one.holds for one in plan.interventions)


@dataclass(slots=True, eq=False, kw_only=True)
class WorkerRow(SteeredRow):
    """One request. A resumed request computes some positions again that it had computed and measured.

    cached: positions that were found in the prefix cache.
    stored: prompt blocks whose measures are kept (measures.py).
    """

    key: str
    failed: bool = False
    cached: int = 0
    stored: int = 0

    @property
    def shares_measures(self) -> bool:
        """Whether its prompt may be shared with requests that are steered alike there."""
        plan = self.plan
        return self.capture is None and bool(plan.prompt_fingerprint) and not computes_whole(plan)

    def restarts(self, first: int) -> bool:
        """Whether the request begins again: it was preempted, and decides at every position itself."""
        again = self.capture is not None or (computes_whole(self.plan) and self.history is None)
        return again and 0 == first < self.computed

    def scores_at(self, scores: Sequence[float], layers: frozenset[int], *, first: bool) -> dict[int, float]:
        """Returns those scores of its monitors that were read at these layers. first: at the last position of the prompt."""
        read = self.monitors.read_at(first=first)
        return {place: score for place, score in enumerate(scores) if read[place].reading.layer in layers}

    def report(self, layers: frozenset[int]) -> ReportMessage:
        """Returns what its steering did at these layers, those of one pipeline stage, once it has left the worker."""
        plan, own, capture = self.plan, self.doses, self.capture
        scores = zip(plan.thresholds, own.scores or [nan] * len(plan.thresholds), strict=True)
        return ReportMessage(
            self.key,
            MeasuredDoses(own.layers, own.doses.float(), own.totals.float(), tuple(own.fired)) if own.layers else None,
            tuple(None if one.layer not in layers or isnan(score) else score for one, score in scores),
            own.held,
            {} if capture is None else {layer: _joined(pieces, capture) for layer, pieces in capture.pieces.items()},
            torch.cat(capture.logits).cpu() if capture is not None and capture.logits else None,
            own.incomplete,
        )

    def segments(self, first: int, start: int, end: int) -> Iterator[Segment["WorkerRow"]]:
        """Yields the segments of flat tokens [start, end), whose positions begin at `first`; positions that were
        measured before are in a segment of their own. Raises InternalError where the result could not be exact."""
        stop = first + end - start
        several = stop - max(first, self.computed, self.prompt_length - 1) > 1
        if several and follows_single_tokens(self.plan):
            raise InternalError(
                "steering that follows the tokens one at a time cannot be computed for several of them together"
            )
        self.ids.extend([UNKNOWN_TOKEN] * (stop - len(self.ids)))
        again = min(self.computed, stop) - first
        if again > 0:
            yield Segment(self, first, start, start + again, again=True)
            first, start = first + again, start + again
        if start < end:
            yield Segment(self, first, start, end)
        self.computed = max(self.computed, stop)


def new_row(
    prompt: list[int],
    steering: RequestSteering,
    plan: SteeringPlan,
    readings: tuple[Reading, ...],
    layers: frozenset[int],
    monitors: MonitorSet = NO_MONITORS,
) -> WorkerRow:
    """Returns the row of a new request. layers: those of this pipeline stage."""
    history = SteeringHistory(steering.prompt_length) if follows_single_tokens(plan) else None
    return WorkerRow(
        key=steering.key,
        ids=list(prompt),
        prompt_length=steering.prompt_length,
        plan=plan,
        readings=tuple(reading for reading in readings if reading.layer in layers),
        capture=None if steering.capture is None else _capture(steering.capture, layers),
        monitors=monitors,
        history=history if steering.capture is None else None,
    )


def _joined(pieces: list[Tensor], capture: CaptureState) -> Tensor:
    return (torch.stack(pieces).sum(0) if capture.reduce else torch.cat(pieces)).cpu()


def _capture(window: CaptureWindow, layers: frozenset[int]) -> CaptureState:
    here = tuple(layer for layer in window.layers if layer in layers)
    positions = window.start, window.end
    return CaptureState(0, here, positions, window.first, window.reduce, wants_logits=window.logits)
