"""Flags: conditions on live readouts that a request sets; which were raised at which token, and how often in all."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.metrics import Metrics
from steering.engine.api import TokenEvent
from steering.schemas.flags import FlagCondition, RaisedFlag


@dataclass(frozen=True, slots=True, eq=False)
class Flags:
    """The conditions of one request, in the order asked. Without any nothing is said of flags."""

    conditions: tuple[FlagCondition, ...] = ()
    metrics: Metrics | None = None

    def seen(self, event: TokenEvent) -> list[int] | None:
        """Indices of the conditions that hold at a token, None where none does. They are counted by the side of the
        bound: a label for a name would be one that callers make up."""
        if not self.conditions:
            return None
        found = [index for index, one in enumerate(self.conditions) if _holds(one, event)]
        if self.metrics is not None:
            for index in found:
                side = "below" if self.conditions[index].above is None else "above"
                self.metrics.flagged_tokens.labels(side).inc()
        return found or None

    def raised(self, events: Sequence[TokenEvent]) -> list[RaisedFlag] | None:
        """The conditions that held somewhere in an answer, and where; None where none was asked."""
        if not self.conditions:
            return None
        tokens = [[event.index for event in events if _holds(one, event)] for one in self.conditions]
        return [
            RaisedFlag(vector=one.vector, above=one.above, below=one.below, tokens=there)
            for one, there in zip(self.conditions, tokens, strict=True)
            if there
        ]


NO_FLAGS = Flags()
"""Of a request that asked for none."""


def _holds(condition: FlagCondition, event: TokenEvent) -> bool:
    score = event.readout.get(condition.vector)
    if score is None:
        return False
    if condition.above is not None:
        return score > condition.above
    return condition.below is not None and score < condition.below
