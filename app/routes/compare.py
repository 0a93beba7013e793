"""POST /v1/compare: one prompt, several arms, one seed, one batch; plain or as an interleaved stream."""

from fastapi import APIRouter
from starlette.responses import Response

from app.http.dependencies import LeaseDep, SaltDep, StateDep
from app.http.request_reading import ApiRoute, needs
from app.http.streaming import event_stream
from app.services.compare import events, prepared, whole
from steering.schemas.comparison import CompareAnswer, CompareRequest

router = APIRouter(route_class=ApiRoute, tags=["generation"])


@router.post(
    "/v1/compare",
    openapi_extra=needs("generate"),
    response_model=CompareAnswer,
    response_model_exclude_none=True,
    responses={200: {"content": {"text/event-stream": {}}}},
)
async def compare(body: CompareRequest, state: StateDep, lease: LeaseDep, salt: SaltDep) -> CompareAnswer | Response:
    """What every arm wrote, how each stands, and what differs from the baseline."""
    comparison = await prepared(state, body, salt)
    lease.take(comparison.rows)
    if body.stream:
        return await event_stream(state, events(comparison))
    return await whole(comparison)
