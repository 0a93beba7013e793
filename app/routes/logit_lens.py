"""POST /v1/logit-lens: what the model would say if it stopped at a layer, plain and steered."""

from fastapi import APIRouter
from starlette.responses import Response

from app.http.dependencies import LeaseDep, StateDep
from app.http.request_reading import ApiRoute, needs
from app.services.analysis import json_answer, lens_answer, prepared_lens
from steering.schemas.analysis import LogitLensAnswer, LogitLensRequest
from steering.workflows.reading.logit_lens import logit_lens as run

router = APIRouter(route_class=ApiRoute, tags=["reading"])


@router.post("/v1/logit-lens", openapi_extra=needs("generate"), response_model=LogitLensAnswer)
async def logit_lens(body: LogitLensRequest, state: StateDep, _lease: LeaseDep) -> Response:
    """The likeliest next tokens at every layer and token of the prompt."""
    request = await prepared_lens(state, body)
    found = await run(state.engine, request)
    return await json_answer(lambda: lens_answer(state, request, found))
