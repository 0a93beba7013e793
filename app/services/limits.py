"""Checks what a caller gave against the limits of the operator, the policy and its key. Every route that takes sampling or
steering uses these."""

from collections.abc import Iterable, Sequence
from typing import Literal

from app.errors import InsufficientScope
from app.settings import Settings
from steering.errors import InvalidRequest, LimitExceeded
from steering.plan.dose import DoseGuard
from steering.schemas.governance import KeyLimitsFields, SteeringLimits
from steering.schemas.messages import ChoiceFields, SamplingFields
from steering.spec import InterventionSpec, SteeringSpec, vector_names
from steering.spec_base import is_inline

_NARROWER = ("any", "profiles", "none")


def check_limit(given: int, limit: int, what: str, param: str) -> None:
    """Raises LimitExceeded when more was given than the operator allows."""
    if given > limit:
        raise LimitExceeded(f"{given} {what} given; at most {limit}", param=param)


def foreign(kind: str, name: str, owner: str, own: str) -> InsufficientScope:
    """Returns the error for changing a thing that a key sees and that belongs to another namespace."""
    return InsufficientScope(
        f"{kind} {name[:80]!r} belongs to namespace {owner!r}; this key changes those of {own!r} only"
    )


def check_sampling(settings: Settings, fields: SamplingFields, n: int) -> None:
    """Raises LimitExceeded for more answers, stop strings or biases than the operator allows."""
    stops = fields.stops
    check_limit(n, settings.max_n, "answers", "n")
    check_limit(len(stops), settings.max_stops, "stop strings", "stop")
    check_limit(max(map(len, stops), default=0), settings.max_stop_characters, "characters in a stop string", "stop")
    if isinstance(fields, ChoiceFields):
        check_limit(fields.top_logprobs or 0, settings.max_top_logprobs, "logprobs", "logprobs")


def check_steering(settings: Settings, interventions: Sequence[InterventionSpec]) -> None:
    """Raises LimitExceeded for more interventions than the operator allows."""
    check_limit(len(interventions), settings.max_interventions, "interventions", "steering")


def check_own_steering(limits: SteeringLimits, *, profile: bool, listed: bool) -> None:
    """Raises InsufficientScope where a request may not steer in this way. No steering of its own (`[]`) is always allowed."""
    allowed = limits.own_steering
    if listed and allowed != "any":
        raise InsufficientScope("this key may not list interventions of its own", param="steering")
    if profile and allowed == "none":
        raise InsufficientScope("this key may not choose its steering", param="steering")


def check_vectors(limits: SteeringLimits, names: Iterable[str]) -> None:
    """Raises InsufficientScope for a vector that a request may not steer with, which every inline direction is."""
    allowed = limits.vectors
    if allowed is None:
        return
    for name in names:
        if is_inline(name):
            raise InsufficientScope("this key may not steer with directions of its own", param="steering")
        if name.partition("@")[0] not in allowed:
            raise InsufficientScope(f"this key may not steer with vector {name[:80]!r}", param="steering")


def check_stored(interventions: Sequence[InterventionSpec]) -> None:
    """Raises InvalidRequest for an inline direction in steering that is to be stored."""
    if any(is_inline(name) for name in vector_names(SteeringSpec(interventions=tuple(interventions)))):
        raise InvalidRequest(
            "an inline direction is for one request and is not stored; register it (POST /v1/vectors) and give its name",
            param="interventions",
        )


def narrowed(policy: SteeringLimits, key: KeyLimitsFields) -> SteeringLimits:
    """Returns the narrower limit of each kind. A key never widens what the policy allows."""
    doses = [dose for dose in (policy.max_relative_dose, key.max_relative_dose) if dose is not None]
    vectors = policy.vectors
    if key.vectors is not None:
        vectors = key.vectors if vectors is None else tuple(name for name in key.vectors if name in vectors)
    own = max(policy.own_steering, key.own_steering, key=_NARROWER.index)
    return SteeringLimits(max_relative_dose=min(doses, default=None), own_steering=own, vectors=vectors)


def dose_guard(settings: Settings, limit: float | None, action: Literal["clamp", "refuse"] = "refuse") -> DoseGuard:
    """Returns the operator's dose guard, or a narrower one for a limit of the policy or the key, which is always enforced."""
    guard = DoseGuard(settings.dose_bound, settings.dose_action)
    if limit is None or (guard.run_time_bound is not None and guard.bound <= limit):
        return guard
    return DoseGuard(limit, action)
