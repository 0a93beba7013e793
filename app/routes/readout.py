"""POST /v1/readout: texts read against vectors, token by token and layer by layer."""

from fastapi import APIRouter
from starlette.responses import Response

from app.http.dependencies import LeaseDep, StateDep
from app.http.request_reading import ApiRoute, needs
from app.services.analysis import json_answer, prepared_readout, readout_answer
from steering.schemas.analysis import ReadoutAnswer, ReadoutRequest
from steering.workflows.reading.readout import readout as run

router = APIRouter(route_class=ApiRoute, tags=["reading"])


@router.post("/v1/readout", openapi_extra=needs("generate"), response_model=ReadoutAnswer)
async def readout(body: ReadoutRequest, state: StateDep, _lease: LeaseDep) -> Response:
    """How much of each concept is in each token, in natural scales."""
    request = await prepared_readout(state, body)
    found = await run(state.engine, request)
    return await json_answer(lambda: readout_answer(state, request, found))
