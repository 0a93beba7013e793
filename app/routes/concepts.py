"""/v1/concepts: the contrastive pairs that come with the package."""

from fastapi import APIRouter

from app.http.request_reading import ApiRoute
from app.services.concepts import concept_answer, concept_detail
from steering.concepts import CONCEPTS
from steering.schemas.system import ConceptDetail, ConceptList
from steering.threads import run_in_thread

router = APIRouter(route_class=ApiRoute, tags=["concepts"])


@router.get("/v1/concepts")
async def find() -> ConceptList:
    """Lists the starter concepts."""
    return ConceptList(data=await run_in_thread(lambda: [concept_answer(name) for name in CONCEPTS]))


@router.get("/v1/concepts/{name}")
async def read(name: str) -> ConceptDetail:
    """Returns one starter concept with its pairs."""
    return await run_in_thread(concept_detail, name)
