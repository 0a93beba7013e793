"""WorkerRow: one request inside a worker, the segments of it that a step computes, and what is reported of it."""

from collections.abc import Iterator
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from itertools import count
from math import isnan, nan
from typing import cast

import torch

from steering.engine.api import CaptureSpec, SamplingParams
from steering.engine.readings import NO_MONITORS, MonitorSet, Reading
from steering.engine.transformers.batch import Segment
from steering.engine.transformers.sequence import CaptureState, Sequence, Stream
from steering.engine.transformers.steering.history import SteeringHistory
from steering.engine.transformers.steering.timing import follows_single_tokens
from steering.engine.vllm.messages import CaptureWindow, ReportMessage, RequestSteering
from steering.errors import InternalError
from steering.plan.types import SteeringPlan
from steering.shapes import Tensor

NO_STREAM = cast(Stream, None)
"""Events are delivered by the server's process; nothing in a worker reads the stream of a sequence."""
UNKNOWN_TOKEN = 0
"""Stands for a generated token, whose id steering does not need."""


def computes_whole(plan: SteeringPlan) -> bool:
    """Whether a request must compute each of its positions itself: what is decided or summed at one counts later.

    The server has such requests skip the prefix cache, also when they are resumed after a preemption.
    """
    return not plan.reusable or bool(plan.thresholds) or any(one.holds for one in plan.interventions)


@dataclass(slots=True, eq=False)
class WorkerRow:
    """One request. computed: positions that were computed and measured; a resumed request computes some of them again.

    cached: positions that were found in the prefix cache. stored: prompt blocks whose measures are kept (measures.py).
    """

    key: str
    sequence: Sequence
    computed: int = 0
    failed: bool = False
    cached: int = 0
    stored: int = 0

    @property
    def shares_measures(self) -> bool:
        """Whether its prompt may be shared with requests that are steered alike there."""
        plan = self.sequence.plan
        return self.sequence.capture is None and bool(plan.prompt_fingerprint) and not computes_whole(plan)

    def restarts(self, first: int) -> bool:
        """Whether the request begins again: it was preempted, and decides at every position itself."""
        sequence = self.sequence
        again = sequence.capture is not None or (computes_whole(sequence.plan) and sequence.history is None)
        return again and 0 == first < self.computed

    def scores_at(self, scores: Rows[float], layers: frozenset[int], *, first: bool) -> dict[int, float]:
        """Returns those scores of its monitors that were read at these layers. first: at the last position of the prompt."""
        read = self.sequence.monitors.read_at(first=first)
        return {place: score for place, score in enumerate(scores) if read[place].reading.layer in layers}

    def report(self, layers: frozenset[int]) -> ReportMessage:
        """Returns what its steering did at these layers, those of one pipeline stage, once it has left the worker."""
        plan, dose, capture = self.sequence.plan, self.sequence.dose, self.sequence.capture
        scores = zip(plan.thresholds, dose.scores or [nan] * len(plan.thresholds), strict=True)
        return ReportMessage(
            self.key,
            tuple((*place, one.dose, one.tokens, one.changed, one.fired_at) for place, one in dose.sums.items()),
            tuple(None if one.layer not in layers or isnan(score) else score for one, score in scores),
            dose.held,
            {} if capture is None else {layer: _joined(pieces, capture) for layer, pieces in capture.pieces.items()},
            torch.cat(capture.logits).cpu() if capture is not None and capture.logits else None,
            dose.incomplete,
        )

    def segments(self, first: int, start: int, end: int) -> Iterator[Segment]:
        """Yields the segments of flat tokens [start, end), whose positions begin at `first`; positions that were
        measured before are in a segment of their own. Raises InternalError where the result could not be exact."""
        stop = first + end - start
        sequence = self.sequence
        several = stop - max(first, self.computed, sequence.prompt_length - 1) > 1
        if several and follows_single_tokens(sequence.plan):
            raise InternalError(
                "steering that follows the tokens one at a time cannot be computed for several of them together"
            )
        sequence.ids.extend([UNKNOWN_TOKEN] * (stop - len(sequence.ids)))
        again = min(self.computed, stop) - first
        if again > 0:
            yield Segment(_stand_in(sequence, first), first, start, start + again)
            first, start = first + again, start + again
        if start < end:
            sequence.computed = first
            yield Segment(sequence, first, start, end)
        self.computed = max(self.computed, stop)


_STAND_INS = count(2)


def _stand_in(sequence: Sequence, first: int) -> Sequence:
    """Stands for a request in one step that computes positions again: the same row of the bank, sums that nobody reads."""
    return Sequence(
        id=-next(_STAND_INS),
        ids=sequence.ids,
        prompt_length=sequence.prompt_length,
        plan=sequence.plan,
        sampling=sequence.sampling,
        stream=NO_STREAM,
        row=sequence.row,
        computed=first,
        replayed=sequence.history,
    )


def new_row(
    number: int,
    prompt: list[int],
    steering: RequestSteering,
    plan: SteeringPlan,
    readings: tuple[Reading, ...],
    layers: frozenset[int],
    monitors: MonitorSet = NO_MONITORS,
) -> WorkerRow:
    """Returns the row of a new request. layers: those of this pipeline stage."""
    history = SteeringHistory(steering.prompt_length) if follows_single_tokens(plan) else None
    sequence = Sequence(
        id=number,
        ids=list(prompt),
        prompt_length=steering.prompt_length,
        plan=plan,
        sampling=SamplingParams(),
        stream=NO_STREAM,
        readings=tuple(reading for reading in readings if reading.layer in layers),
        capture=None if steering.capture is None else _capture(steering.capture, layers),
        monitors=monitors,
        history=history if steering.capture is None else None,
    )
    return WorkerRow(steering.key, sequence)


def _joined(pieces: list[Tensor], capture: CaptureState) -> Tensor:
    return (torch.stack(pieces).sum(0) if capture.reduce else torch.cat(pieces)).cpu()


def _capture(window: CaptureWindow, layers: frozenset[int]) -> CaptureState:
    here = tuple(layer for layer in window.layers if layer in layers)
    spec = CaptureSpec(here, logits=window.logits)
    return CaptureState(index=0, spec=spec, window=(window.start, window.end), first=window.first, reduce=window.reduce)
