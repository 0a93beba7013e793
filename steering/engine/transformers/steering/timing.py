"""When an intervention acts: its scope as a range of positions, its schedule as a weight per generated token."""

from dataclasses import dataclass
from math import cos, inf, pi

from steering.plan.order import waits_for_prompt
from steering.plan.types import Intervention, SteeringPlan
from steering.spec import Schedule, TokenScope


def positions_of(scope: TokenScope, prompt_length: int) -> tuple[float, float]:
    """Half-open range of absolute positions in scope. `generated` begins at the last prompt position (index 0)."""
    last = prompt_length - 1
    if scope.tokens == "all":
        return 0, inf
    if scope.tokens == "last":
        return last, prompt_length
    if scope.tokens == "generated":
        return last + (scope.start or 0), inf if scope.end is None else last + scope.end
    start, end, _ = slice(scope.start, scope.end).indices(prompt_length)
    return start, end


def weight(schedule: Schedule, index: int) -> float:
    """w(index of the generated token): 1 at the start, `to` after `tokens` (warmup: 0 to 1)."""
    if schedule.kind == "constant":
        return 1.0
    assert schedule.tokens is not None
    x = min(index / schedule.tokens, 1.0)
    if schedule.kind == "linear":
        return 1.0 + (schedule.to - 1.0) * x
    if schedule.kind == "cosine":
        return schedule.to + (1.0 - schedule.to) * (1.0 + cos(pi * x)) / 2.0
    if schedule.kind == "exponential":
        return float(schedule.to**x)
    return x


@dataclass(frozen=True, slots=True)
class Timing:
    """The range of positions at which an intervention acts and its weight at each, for one prompt length."""

    start: float
    end: float
    schedule: Schedule
    prompt_length: int
    scheduled: bool

    @classmethod
    def of(cls, intervention: Intervention, plan: SteeringPlan, prompt_length: int) -> "Timing":
        """A condition that is decided at the prompt's end cannot act before it. A prompt scope has no generated index."""
        start, end = positions_of(intervention.scope, prompt_length)
        if waits_for_prompt(intervention.condition, plan.thresholds):
            start = max(start, prompt_length - 1)
        schedule = intervention.schedule
        scheduled = schedule.kind != "constant" and intervention.scope.tokens in ("all", "generated")
        return cls(start, end, schedule, prompt_length, scheduled)

    def at(self, position: int) -> float:
        """Weight at a position, 0 where it is out of scope."""
        if not self.start <= position < self.end:
            return 0.0
        index = position - (self.prompt_length - 1)
        return weight(self.schedule, index) if self.scheduled and index >= 0 else 1.0

    def is_constant_from(self, position: int) -> bool:
        """Whether the weight is 1 at this and every later position."""
        return self.start <= position and self.end == inf and not self.scheduled


def follows_single_tokens(plan: SteeringPlan) -> bool:
    """Whether a generated token's steering depends on the token before it, so that a pass computes one of them at a time.

    That is so for held readouts, and for conditions that are read at a later layer than one where they act.
    """
    if any(one.holds for one in plan.interventions):
        return True
    return any(
        plan.thresholds[leaf].layer > layer
        for layer, steering in plan.layers.items()
        for call in steering.calls
        if (condition := plan.intervention(call).condition) is not None
        for leaf in condition.leaves()
    )
