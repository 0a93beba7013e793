"""Builds the parts that the responses of reading routes share."""

from collections.abc import Callable, Mapping, Sequence

from pydantic import BaseModel
from starlette.responses import Response

from steering.plan.types import SteeringPlan
from steering.schemas.reading import LensSteering, ReadToken, ReadVector
from steering.threads import run_in_thread
from steering.vectors import ConceptVector

ACTIVATION_BYTES = 8
"""Memory of one activation: float32, and a copy while layers are stacked."""
SCORE_BYTES = 64
"""Memory of one number of a response: a Python float in a list, and its text."""


async def json_in_thread(build: Callable[[], BaseModel]) -> Response:
    """Builds and serializes a response in a thread: it may contain a hundred thousand numbers."""
    content = await run_in_thread(lambda: build().model_dump_json())
    return Response(content, media_type="application/json")


def read_vectors(vectors: Mapping[str, ConceptVector]) -> dict[str, ReadVector]:
    """Reports the versions that were used, by the names given."""
    return {name: ReadVector(id=vector.id, sha256=vector.sha256) for name, vector in vectors.items()}


def read_tokens(ids: Sequence[int], texts: Sequence[str]) -> list[ReadToken]:
    """Lists the tokens of a text that was read."""
    return [ReadToken(id=token, text=text) for token, text in zip(ids, texts, strict=True)]


def applied_plan(plan: SteeringPlan) -> LensSteering | None:
    """Reports the steering of a reading; None without any."""
    if plan.empty:
        return None
    return LensSteering(fingerprint=plan.fingerprint, vectors=dict(plan.vectors), warnings=list(plan.warnings))
