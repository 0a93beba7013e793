"""Builds the parts that the responses of reading routes share."""

from steering.plan.types import SteeringPlan
from steering.schemas.reading import LensSteering

ACTIVATION_BYTES = 8
"""Memory of one activation: float32, and a copy while layers are stacked."""
SCORE_BYTES = 64
"""Memory of one number of a response: a Python float in a list, and its text."""
ALTERNATIVE_BYTES = 512
"""Memory of one listed token of a response, its log-probability and text included, as objects and as JSON."""


def applied_plan(plan: SteeringPlan) -> LensSteering | None:
    """Reports the steering of a reading; None without any."""
    if plan.empty:
        return None
    return LensSteering(fingerprint=plan.fingerprint, vectors=dict(plan.vectors), warnings=list(plan.warnings))
