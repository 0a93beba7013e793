"""When an intervention acts: its scope as a range of positions and a choice of tokens, its schedule as a weight per generated token."""

from collections.abc import Sequence
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


GENERATED_ROLE = "assistant"
"""Of generated tokens, and of the position that predicts the first of them."""


@dataclass(frozen=True, slots=True, eq=False)
class TokenChoice:
    """The positions of a sequence whose tokens a scope names. ids: those of the sequence, which grows. prompt_roles: of the plan.

    token_ids, roles: those of the scope; None for any.
    """

    token_ids: frozenset[int] | None
    roles: frozenset[str] | None
    ids: Sequence[int]
    prompt_roles: Sequence[str | None]
    prompt_length: int

    @classmethod
    def of(
        cls, scope: TokenScope, ids: Sequence[int], prompt_roles: Sequence[str | None], prompt_length: int
    ) -> "TokenChoice":
        """Returns the choice of a scope, with sets of what it names: each position looks into them."""
        token_ids = None if scope.token_ids is None else frozenset(scope.token_ids)
        roles = None if scope.roles is None else frozenset[str](scope.roles)
        return cls(token_ids, roles, ids, prompt_roles, prompt_length)

    def holds(self, position: int) -> bool:
        """Whether the token at a position is named, by its id and by its role."""
        if self.token_ids is not None and self.ids[position] not in self.token_ids:
            return False
        if self.roles is None:
            return True
        generated = position >= self.prompt_length - 1
        return (GENERATED_ROLE if generated else self.prompt_roles[position]) in self.roles


@dataclass(frozen=True, slots=True)
class Timing:
    """The range of positions at which an intervention acts and its weight at each, for one sequence.

    choice: which positions of the range; None: all.
    """

    start: float
    end: float
    schedule: Schedule
    prompt_length: int
    scheduled: bool
    choice: TokenChoice | None = None

    @classmethod
    def of(cls, intervention: Intervention, plan: SteeringPlan, ids: Sequence[int], prompt_length: int) -> "Timing":
        """A condition that is decided at the prompt's end cannot act before it. A prompt scope has no generated index."""
        start, end = positions_of(intervention.scope, prompt_length)
        if waits_for_prompt(intervention.condition, plan.thresholds):
            start = max(start, prompt_length - 1)
        schedule = intervention.schedule
        scheduled = schedule.kind != "constant" and intervention.scope.tokens in ("all", "generated")
        choice = None
        if intervention.scope.selects:
            choice = TokenChoice.of(intervention.scope, ids, plan.prompt_roles or (), prompt_length)
        return cls(start, end, schedule, prompt_length, scheduled, choice)

    @property
    def varies(self) -> bool:
        """Whether the weight may differ between positions of the range."""
        return self.scheduled or self.choice is not None

    def at(self, position: int) -> float:
        """Weight at a position, 0 where it is out of scope."""
        if not self.start <= position < self.end or not (self.choice is None or self.choice.holds(position)):
            return 0.0
        index = position - (self.prompt_length - 1)
        return weight(self.schedule, index) if self.scheduled and index >= 0 else 1.0

    def is_constant_from(self, position: int) -> bool:
        """Whether the weight is 1 at this and every later position."""
        return self.start <= position and self.end == inf and not self.varies


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
