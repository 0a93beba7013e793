"""Flags: conditions on live readouts that a request sets, monitors that a policy sets, and the tokens at which they hold."""

from dataclasses import dataclass

from app.metrics import Metrics
from steering.engine.api import TokenEvent
from steering.engine.readings import RaisedMonitor
from steering.schemas.generation import FlagCondition, RaisedFlag
from steering.workflows.generate import Answer


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
        found = [index for index, one in enumerate(self.conditions) if _holds(one, event)]
        if self.metrics is not None:
            for index in found:
                side = "below" if self.conditions[index].above is None else "above"
                self.metrics.flagged_tokens.labels(side).inc()
        return found or None

    def raised(self, answer: Answer) -> list[RaisedFlag] | None:
        """Returns the conditions and monitors that held somewhere in an answer, and where. None when the request has no
        conditions and no monitor was raised."""
        monitors = _raised_monitors(answer)
        if not self.conditions:
            return monitors or None
        flags = [
            RaisedFlag(vector=one.vector, above=one.above, below=one.below, tokens=tokens)
            for one in self.conditions
            if (tokens := [event.index for event in answer.events if _holds(one, event)])
        ]
        return flags + monitors


NO_FLAGS = Flags()
"""The flags of a request without any."""


def _raised_monitors(answer: Answer) -> list[RaisedFlag]:
    found: dict[str, list[tuple[int | None, RaisedMonitor]]] = {}
    for token, one in answer.raised:
        found.setdefault(one.monitor.name, []).append((token, one))
    flags = []
    for name, raised in found.items():
        monitor = raised[0][1].monitor
        flags.append(
            RaisedFlag(
                monitor=name,
                vector=monitor.vector,
                above=monitor.bound if monitor.above else None,
                below=None if monitor.above else monitor.bound,
                at=monitor.at,
                action=monitor.action,
                score=(max if monitor.above else min)(one.score for _, one in raised),
                tokens=[token for token, _ in raised if token is not None],
            )
        )
    return flags


def _holds(condition: FlagCondition, event: TokenEvent) -> bool:
    """Whether the score of a token lies beyond the one bound given."""
    score = event.readout.get(condition.vector)
    if score is None:
        return False
    if condition.above is not None:
        return score > condition.above
    return condition.below is not None and score < condition.below
