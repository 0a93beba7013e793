"""POST /v1/latent-space: where texts lie in the residual stream, layer by layer, drawn in two or three dimensions."""

from fastapi import APIRouter
from starlette.responses import Response

from app.http.dependencies import LeaseDep, StateDep
from app.http.request_reading import UploadRoute, needs
from app.services.analysis import json_answer, map_answer, prepared_map
from steering.schemas.analysis import LatentSpaceAnswer, LatentSpaceRequest
from steering.workflows.reading.latent_space import latent_space as run

router = APIRouter(route_class=UploadRoute, tags=["reading"])


@router.post("/v1/latent-space", openapi_extra=needs("generate"), response_model=LatentSpaceAnswer)
async def latent_space(body: LatentSpaceRequest, state: StateDep, _lease: LeaseDep) -> Response:
    """A point a text and layer, how well labels stand apart there, and the vectors drawn in the same picture."""
    request = await prepared_map(state, body)
    found = await run(state.engine, request)
    return await json_answer(lambda: map_answer(state, request, found))
