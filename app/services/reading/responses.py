"""Builds the parts that the responses of reading routes share."""

from collections.abc import Callable

from pydantic import BaseModel
from starlette.responses import Response

from steering.plan.types import SteeringPlan
from steering.schemas.reading import LensSteering
from steering.threads import run_in_thread

ACTIVATION_BYTES = 8
"""Memory of one activation: float32, and a copy while layers are stacked."""
SCORE_BYTES = 64
"""Memory of one number of a response: a Python float in a list, and its text."""


async def json_in_thread(build: Callable[[], BaseModel], *, exclude_unset: bool = False) -> Response:
    """Builds and serializes a response in a thread: it may contain a hundred thousand numbers."""
    content = await run_in_thread(lambda: build().model_dump_json(exclude_unset=exclude_unset))
    return Response(content, media_type="application/json")


def applied_plan(plan: SteeringPlan) -> LensSteering | None:
    """Reports the steering of a reading; None without any."""
    if plan.empty:
        return None
    return LensSteering(fingerprint=plan.fingerprint, vectors=dict(plan.vectors), warnings=list(plan.warnings))
