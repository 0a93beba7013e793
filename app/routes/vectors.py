"""/v1/vectors: register, combine, import, list, read, export, compare, describe, delete."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from app.http.dependencies import ContextDep
from app.http.request_reading import ApiRoute, BinaryRoute, UploadRoute
from app.services.limits import check_limit
from app.services.resources import directions, vector_answer
from app.services.vectors.files import export_file, file_bytes, import_file
from app.services.vectors.similar import similar_vectors
from app.services.vectors.versions import delete_vector, describe_vector, list_versions
from steering.schemas.vectors import (
    CombineRequest,
    DeleteQuery,
    DescribeRequest,
    DirectionsQuery,
    ExportQuery,
    ImportQuery,
    RegisterRequest,
    SimilarAnswer,
    VectorAnswer,
    VectorPageAnswer,
    VectorQuery,
    VectorVersionsAnswer,
    VersionQuery,
    VersionsQuery,
)
from steering.store.base import VectorFilter
from steering.threads import run_in_thread
from steering.workflows.extraction.make import combined, registered

router = APIRouter(route_class=ApiRoute, tags=["vectors"])
uploads = APIRouter(route_class=UploadRoute, tags=["vectors"])
files = APIRouter(route_class=BinaryRoute, tags=["vectors"])

_FILE = {"requestBody": {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}}  # fmt: skip


@uploads.post("/v1/vectors", status_code=201)
async def register(body: RegisterRequest, context: ContextDep) -> VectorAnswer:
    """Stores given directions as the next version of a name."""
    info, directions, scale = context.engine.info, body.directions, body.scale
    tags = tuple(body.tags)
    vector = await run_in_thread(registered, info, body.name, directions, scale, body.description, tags)
    return vector_answer(await context.store.vectors.put(vector))


@router.post("/v1/vectors/combine", status_code=201)
async def combine(body: CombineRequest, context: ContextDep) -> VectorAnswer:
    """Stores a weighted sum of vectors, made orthogonal to others if requested."""
    terms = [(await context.vector(term.vector, "terms"), term.weight) for term in body.terms]
    others = [await context.vector(name, "orthogonal_to") for name in body.orthogonal_to]
    vector = await run_in_thread(
        combined, context.engine.info, body.name, terms, others, body.description, tuple(body.tags)
    )
    return vector_answer(await context.store.vectors.put(vector))


@files.post("/v1/vectors/import", status_code=201, openapi_extra=_FILE)
async def import_vector(request: Request, query: Annotated[ImportQuery, Query()], context: ContextDep) -> VectorAnswer:
    """Stores the vector in one safetensors file."""
    vector = await run_in_thread(import_file, await request.body(), query.name, context.engine.info)
    return vector_answer(await context.store.vectors.put(vector))


@router.get("/v1/vectors")
async def find(query: Annotated[VectorQuery, Query()], context: ContextDep) -> VectorPageAnswer:
    """Lists the newest version of each name, by name."""
    check_limit(query.limit, context.settings.max_page, "entries per page", "limit")
    where = VectorFilter(query.tag, query.method, query.search)
    page = await context.store.vectors.find(where, query.limit, query.cursor)
    return VectorPageAnswer(data=[vector_answer(vector) for vector in page.vectors], next_cursor=page.next_cursor)


@router.get("/v1/vectors/{name}")
async def read(name: str, query: Annotated[VersionQuery, Query()], context: ContextDep) -> VectorAnswer:
    """Returns metadata and quality card of `name` or `name@version`."""
    return vector_answer(await context.vector_version(name, query.version))


@router.get("/v1/vectors/{name}/directions")
async def read_directions(
    name: str, query: Annotated[DirectionsQuery, Query()], context: ContextDep
) -> dict[str, list[float]]:
    """Returns the unit directions by layer."""
    vector = await context.vector_version(name, query.version)
    context.admission.reserve(file_bytes(vector))
    layers = None if query.layers is None else [int(layer) for layer in query.layers.split(",")]
    return await run_in_thread(directions, vector, layers)


@router.get("/v1/vectors/{name}/export", response_class=Response)
async def export(name: str, query: Annotated[ExportQuery, Query()], context: ContextDep) -> Response:
    """Returns the vector as a file."""
    vector = await context.vector_version(name, query.version)
    context.admission.reserve(file_bytes(vector))
    return await run_in_thread(export_file, vector, query.format, query.layers)


@router.get("/v1/vectors/{name}/similar")
async def similar(name: str, query: Annotated[VersionQuery, Query()], context: ContextDep) -> SimilarAnswer:
    """Returns the cosine to every other vector of the same model."""
    vector = await context.vector_version(name, query.version)
    return await similar_vectors(context.store, vector, context.state.cosines)


@router.get("/v1/vectors/{name}/versions")
async def versions(name: str, query: Annotated[VersionsQuery, Query()], context: ContextDep) -> VectorVersionsAnswer:
    """Lists the versions of a vector, newest first."""
    return await list_versions(context, name, query)


@router.patch("/v1/vectors/{name}")
async def describe(name: str, body: DescribeRequest, context: ContextDep) -> VectorAnswer:
    """Changes description and tags, never the directions."""
    return vector_answer(await describe_vector(context, name, body))


@router.delete("/v1/vectors/{name}", status_code=204)
async def delete(name: str, query: Annotated[DeleteQuery, Query()], context: ContextDep) -> None:
    """Deletes all versions, or one; refused while a profile, the default or the policy needs it, unless forced."""
    await delete_vector(context, name, query)
