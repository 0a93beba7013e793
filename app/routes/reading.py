"""POST /v1/readout, /v1/activations, ...: what the model represents while it reads texts. /v1/dictionaries: sparse autoencoders that
the operator registered, to search and to take vectors from."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.http.dependencies import AdmittedDep, ContextDep
from app.http.request_reading import BINARY, ApiRoute, UploadRoute, needs
from app.http.streaming import accepts_json
from app.services.reading import dictionaries, library, tokens
from app.services.reading import latent_space as maps
from app.services.resources import vector_answer
from steering.schemas.latent_space import (
    ClustersAnswer,
    ClustersRequest,
    DictionariesAnswer,
    DictionarySearchAnswer,
    DictionarySearchRequest,
    FeatureVectorRequest,
    LatentSpaceAnswer,
    LatentSpaceRequest,
)
from steering.schemas.reading import (
    ActivationsAnswer,
    ActivationsRequest,
    ExplainAnswer,
    ExplainRequest,
    LogitLensAnswer,
    LogitLensRequest,
    ReadoutAnswer,
    ReadoutRequest,
    ScoreAnswer,
    ScoreRequest,
)
from steering.schemas.vectors import VectorAnswer

router = APIRouter(route_class=ApiRoute, tags=["reading"])
uploads = APIRouter(route_class=UploadRoute, tags=["reading"])
_FILE: dict[int | str, dict[str, Any]] = {200: {"content": BINARY}}


@router.post("/v1/readout", openapi_extra=needs("generate"), response_model=ReadoutAnswer)
async def readout(body: ReadoutRequest, context: AdmittedDep) -> Response:
    """Scores each token of each text against vectors, in natural scales."""
    return await tokens.readout(context, body)


@uploads.post("/v1/latent-space", openapi_extra=needs("generate"), response_model=LatentSpaceAnswer)
async def latent_space(body: LatentSpaceRequest, context: AdmittedDep) -> Response:
    """Projects texts to a point per text and layer, with the separability of labels and the directions of vectors."""
    return await maps.latent_space(context, body)


@router.post("/v1/logit-lens", openapi_extra=needs("generate"), response_model=LogitLensAnswer)
async def logit_lens(body: LogitLensRequest, context: AdmittedDep) -> Response:
    """Lists the most probable next tokens at every layer and token of the prompt."""
    return await tokens.logit_lens(context, body)


@uploads.post("/v1/activations", openapi_extra=needs("generate"), response_model=ActivationsAnswer, responses=_FILE)
async def activations(body: ActivationsRequest, request: Request, context: AdmittedDep) -> Response:
    """Returns the residual stream of texts as a safetensors file; with `Accept: application/json` as JSON."""
    return await tokens.activations(context, body, as_json=accepts_json(request))


@router.post("/v1/score", openapi_extra=needs("generate"), response_model=ScoreAnswer)
async def score(body: ScoreRequest, context: AdmittedDep) -> Response:
    """Returns the log-probability of given continuations or texts, and whether greedy decoding would choose them."""
    return await tokens.score(context, body)


@router.post("/v1/explain", openapi_extra=needs("generate"), response_model=ExplainAnswer)
async def explain(body: ExplainRequest, context: AdmittedDep) -> Response:
    """Lists the concepts of the library that stand out in texts against neutral text, and the tokens that carry them."""
    return await library.explain(context, body)


@uploads.post("/v1/clusters", openapi_extra=needs("generate"), response_model=ClustersAnswer)
async def clusters(body: ClustersRequest, context: AdmittedDep) -> Response:
    """Groups texts without labels by their activations at one layer, and names the vector nearest to each difference."""
    return await library.clusters(context, body)


@router.get("/v1/dictionaries")
async def find(context: ContextDep) -> DictionariesAnswer:
    """Lists the dictionaries of the server."""
    return await dictionaries.listed(context)


@router.post("/v1/dictionaries/{name}/search", openapi_extra=needs("generate"))
async def search(name: str, body: DictionarySearchRequest, context: AdmittedDep) -> DictionarySearchAnswer:
    """Finds features near a vector or active on texts, with the tokens that they promote and, if asked, whether they steer."""
    return await dictionaries.search(context, name, body)


@router.post("/v1/dictionaries/{name}/vectors", status_code=201)
async def store(name: str, body: FeatureVectorRequest, context: ContextDep) -> VectorAnswer:
    """Stores a feature's direction as the next version of a vector."""
    return vector_answer(await dictionaries.feature_vector(context, name, body))
