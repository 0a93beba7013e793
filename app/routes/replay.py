"""POST /v1/replay: an answer's record in, the same tokens out, or what no longer exists."""

from fastapi import APIRouter

from app.http.dependencies import LeaseDep, SaltDep, StateDep
from app.http.request_reading import ApiRoute, needs
from app.services.generate import whole
from app.services.replay import prepared
from steering.schemas.generation import GenerateAnswer
from steering.schemas.replay import Record

router = APIRouter(route_class=ApiRoute, tags=["generation"])


@router.post(
    "/v1/replay",
    openapi_extra=needs("generate"),
    response_model=GenerateAnswer,
    response_model_exclude_none=True,
)
async def replay(body: Record, state: StateDep, lease: LeaseDep, salt: SaltDep) -> GenerateAnswer:
    """The body is `steering.record` of an earlier answer, unchanged."""
    generation = await prepared(state, body, salt)
    lease.take(body.n)
    return await whole(generation)
