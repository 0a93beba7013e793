"""POST /v1/generate: one prompt, n answers, steered, plain or as a stream."""

from fastapi import APIRouter
from starlette.responses import Response

from app.http.dependencies import LeaseDep, SaltDep, StateDep
from app.http.request_reading import ApiRoute, needs
from app.http.streaming import event_stream
from app.services.generate import events, prepared, whole
from steering.schemas.generation import GenerateAnswer, GenerateRequest

router = APIRouter(route_class=ApiRoute, tags=["generation"])


@router.post(
    "/v1/generate",
    openapi_extra=needs("generate"),
    response_model=GenerateAnswer,
    response_model_exclude_none=True,
    responses={200: {"content": {"text/event-stream": {}}}},
)
async def generate(body: GenerateRequest, state: StateDep, lease: LeaseDep, salt: SaltDep) -> GenerateAnswer | Response:
    """The answers, the seed that makes them again, and what the steering really did."""
    generation = await prepared(state, body, salt)
    lease.take(body.n)
    if body.stream:
        return await event_stream(state, events(generation, state.metrics))
    return await whole(generation)
