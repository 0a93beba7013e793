"""Flags: conditions on live readouts that a request sets, and the tokens at which they hold."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.metrics import Metrics
from steering.engine.api import TokenEvent
from steering.schemas.generation import FlagCondition, RaisedFlag


@dataclass(frozen=True, slots=True, eq=False)
class Flags:
    """The conditions of one request, in the order given."""

    conditions: tuple[FlagCondition, ...] = ()
    metrics: Metrics | None = None

    def count(self, event: TokenEvent) -> list[int] | None:
        """Counts the conditions that hold at a token and returns their indices, None where none does.

        The metric is labelled by the side of the bound only: a label with a name would be chosen by callers.
        """
        if not self.conditions:
            return None
        found = [index for index, one in enumerate(self.conditions) if holds(one.above, one.below, _score(one, event))]
        if self.metrics is not None:
            for index in found:
                side = "below" if self.conditions[index].above is None else "above"
                self.metrics.flagged_tokens.labels(side).inc()
        return found or None

    def raised(self, events: Sequence[TokenEvent]) -> list[RaisedFlag] | None:
        """Returns the conditions that held somewhere in an answer, and where. None when the request has none."""
        if not self.conditions:
            return None
        tokens = [
            [event.index for event in events if holds(one.above, one.below, _score(one, event))]
            for one in self.conditions
        ]
        return [
            RaisedFlag(vector=one.vector, above=one.above, below=one.below, tokens=there)
            for one, there in zip(self.conditions, tokens, strict=True)
            if there
        ]


NO_FLAGS = Flags()
"""The flags of a request without any."""


def holds(above: float | None, below: float | None, score: float | None) -> bool:
    """Returns whether a score lies beyond the one bound given."""
    if score is None:
        return False
    if above is not None:
        return score > above
    return below is not None and score < below


def _score(condition: FlagCondition, event: TokenEvent) -> float | None:
    return event.readout.get(condition.vector)
