"""The limits of steering that hold for one request: those of the policy, narrowed by those of its key."""

from typing import Literal

from app.policy.keys import KeyLimits
from app.settings import Settings
from steering.plan.dose import DoseGuard
from steering.schemas.governance import SteeringLimits

_NARROWER = ("any", "profiles", "none")


def narrowed(policy: SteeringLimits, key: KeyLimits) -> SteeringLimits:
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
