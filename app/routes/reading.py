"""POST /v1/readout, /v1/latent-space, /v1/logit-lens: what the model represents while it reads texts."""

from fastapi import APIRouter
from starlette.responses import Response

from app.http.dependencies import AdmittedDep
from app.http.request_reading import ApiRoute, UploadRoute, needs
from app.services.reading import latent_space as maps
from app.services.reading import logit_lens as lens
from app.services.reading import readout as readouts
from app.services.reading.responses import json_in_thread
from steering.schemas.reading.latent_space import LatentSpaceAnswer, LatentSpaceRequest
from steering.schemas.reading.logit_lens import LogitLensAnswer, LogitLensRequest
from steering.schemas.reading.readout import ReadoutAnswer, ReadoutRequest

router = APIRouter(route_class=ApiRoute, tags=["reading"])
uploads = APIRouter(route_class=UploadRoute, tags=["reading"])


@router.post("/v1/readout", openapi_extra=needs("generate"), response_model=ReadoutAnswer)
async def readout(body: ReadoutRequest, context: AdmittedDep) -> Response:
    """Scores each token of each text against vectors, in natural scales."""
    work = await readouts.prepare(context, body)
    found = await readouts.run(work)
    return await json_in_thread(lambda: readouts.answer(work, found))


@uploads.post("/v1/latent-space", openapi_extra=needs("generate"), response_model=LatentSpaceAnswer)
async def latent_space(body: LatentSpaceRequest, context: AdmittedDep) -> Response:
    """Projects texts to a point per text and layer, with the separability of labels and the directions of vectors."""
    work = await maps.prepare(context, body)
    found = await maps.run(work)
    return await json_in_thread(lambda: maps.answer(work, found))


@router.post("/v1/logit-lens", openapi_extra=needs("generate"), response_model=LogitLensAnswer)
async def logit_lens(body: LogitLensRequest, context: AdmittedDep) -> Response:
    """Lists the most probable next tokens at every layer and token of the prompt."""
    work = await lens.prepare(context, body)
    found = await lens.run(work)
    return await json_in_thread(lambda: lens.answer(work, found))
