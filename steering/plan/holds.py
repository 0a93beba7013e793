"""Closed-loop control in a plan: which interventions may hold a readout, and the numbers of each controller."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from steering.errors import InvalidRequest, LimitExceeded
from steering.plan.types import ResolvedHold, SteeringPlan
from steering.spec import InterventionSpec
from steering.vectors import LayerDirection

MAX_HOLDS = 64
"""Controllers of a request, counted over layers."""


@dataclass(frozen=True, slots=True)
class HeldReadout:
    """What a controller of the strength did at one layer: means over the generated tokens at which it acted.

    score: the readout after steering. strength, last_strength: in natural scales.
    """

    score: float
    strength: float
    last_strength: float


def check_holds(sizes: Iterable[tuple[InterventionSpec, int]]) -> None:
    """Refuses fields that contradict `hold`, and more controllers than a request may have. sizes: with the layers of each.

    Raises InvalidRequest, LimitExceeded.
    """
    count = 0
    for item, layers in sizes:
        if item.hold is not None:
            for field, message in _contradictions(item):
                raise InvalidRequest(message, param=field)
            count += layers
    if count > MAX_HOLDS:
        raise LimitExceeded(
            f"{count} strengths are held, counted over the layers; at most {MAX_HOLDS} are allowed", param="hold"
        )


def _contradictions(item: InterventionSpec) -> Iterator[tuple[str, str]]:
    """Yields what in an intervention contradicts `hold`, as (field, message)."""
    if item.scope.tokens != "generated":
        message = "'hold' follows the tokens as they are generated and needs scope 'generated', got"
        yield "scope", f"{message} {item.scope.tokens!r}"
    if item.scope.selects:
        yield "scope", "'hold' follows every generated token and takes no token_ids or roles"
    if item.unit != "scale":
        yield "unit", f"'hold' is on the axis of unit 'scale', got unit {item.unit!r}"
    if item.schedule.kind != "constant":
        message = "'hold' sets the strength at each token and takes no schedule, got"
        yield "schedule", f"{message} {item.schedule.kind!r}"
    if item.share_dose:
        yield "share_dose", "'hold' sets the strength of each layer and takes no 'share_dose'"
    if not item.strength > 0.0:
        message = "with 'hold', strength is the largest that may be used in either direction and must be above 0, got"
        yield "strength", f"{message} {item.strength:g}"


def resolve_hold(item: InterventionSpec, entry: LayerDirection) -> ResolvedHold:
    """The controller of one intervention at the layer of `entry`."""
    assert item.hold is not None
    return ResolvedHold(
        score=item.hold.score,
        integral_gain=item.hold.integral_gain,
        proportional_gain=item.hold.proportional_gain,
        limit=item.strength,
        middle=entry.middle,
        scale=entry.scale,
    )


def hold_columns(plan: SteeringPlan) -> dict[tuple[int, int], int]:
    """(layer, intervention) -> index of its controller among those of the plan."""
    held = [(layer, one.owner) for layer, edits in plan.layers.items() for one in edits]
    held = [(layer, owner) for layer, owner in held if plan.interventions[owner].holds]
    return {place: column for column, place in enumerate(held)}
