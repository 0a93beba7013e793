"""/v1/dictionaries: sparse autoencoders that the operator registered, to search and to take vectors from."""

from fastapi import APIRouter

from app.http.dependencies import AdmittedDep, ContextDep
from app.http.request_reading import ApiRoute, needs
from app.services.reading import dictionaries as service
from app.services.resources import vector_answer
from steering.schemas.latent_space import (
    DictionariesAnswer,
    DictionarySearchAnswer,
    DictionarySearchRequest,
    FeatureVectorRequest,
)
from steering.schemas.vectors import VectorAnswer

router = APIRouter(route_class=ApiRoute, tags=["reading"])


@router.get("/v1/dictionaries")
async def find(context: ContextDep) -> DictionariesAnswer:
    """Lists the dictionaries of the server."""
    return await service.listed(context)


@router.post("/v1/dictionaries/{name}/search", openapi_extra=needs("generate"))
async def search(name: str, body: DictionarySearchRequest, context: AdmittedDep) -> DictionarySearchAnswer:
    """Finds features near a vector or active on texts, with the tokens that they promote and, if asked, whether they steer."""
    return await service.search(context, name, body)


@router.post("/v1/dictionaries/{name}/vectors", status_code=201)
async def store(name: str, body: FeatureVectorRequest, context: ContextDep) -> VectorAnswer:
    """Stores a feature's direction as the next version of a vector."""
    return vector_answer(await service.feature_vector(context, name, body))
