"""/v1/vectors: register, combine, import, list, read, export, compare, describe, delete."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from app.http.dependencies import EngineDep, StateDep, StoreDep, vector_at, vector_named
from app.http.request_reading import ApiRoute, BinaryRoute, UploadRoute
from app.services.inputs import check_limit
from app.services.responses import directions, vector_answer
from app.services.vector_files import export_file, import_file, similar_vectors
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
    VersionQuery,
)
from steering.store.base import VectorFilter
from steering.workflows.extraction.make import combined, registered

router = APIRouter(route_class=ApiRoute, tags=["vectors"])
uploads = APIRouter(route_class=UploadRoute, tags=["vectors"])
files = APIRouter(route_class=BinaryRoute, tags=["vectors"])

_FILE = {"requestBody": {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}}  # fmt: skip


@uploads.post("/v1/vectors", status_code=201)
async def register(body: RegisterRequest, engine: EngineDep, store: StoreDep) -> VectorAnswer:
    """Keeps given directions as the next version of a name."""
    vector = await asyncio.to_thread(
        registered, engine.info, body.name, body.directions, body.scale, body.description, body.tags
    )
    return vector_answer(await store.vectors.put(vector))


@router.post("/v1/vectors/combine", status_code=201)
async def combine(body: CombineRequest, store: StoreDep) -> VectorAnswer:
    """A weighted sum of vectors, made orthogonal to others if asked."""
    terms = [(await vector_named(store, term.vector, "terms"), term.weight) for term in body.terms]
    others = [await vector_named(store, name, "orthogonal_to") for name in body.orthogonal_to]
    vector = await asyncio.to_thread(combined, body.name, terms, others, body.description, body.tags)
    return vector_answer(await store.vectors.put(vector))


@files.post("/v1/vectors/import", status_code=201, openapi_extra=_FILE)
async def import_vector(
    request: Request, query: Annotated[ImportQuery, Query()], engine: EngineDep, store: StoreDep
) -> VectorAnswer:
    """Keeps the vector in one safetensors file."""
    vector = await asyncio.to_thread(import_file, await request.body(), query.name, engine.info)
    return vector_answer(await store.vectors.put(vector))


@router.get("/v1/vectors")
async def find(query: Annotated[VectorQuery, Query()], state: StateDep, store: StoreDep) -> VectorPageAnswer:
    """The newest version of each name, by name."""
    check_limit(query.limit, state.settings.max_page, "entries a page", "limit")
    page = await store.vectors.find(VectorFilter(query.tag, query.method, query.search), query.limit, query.cursor)
    return VectorPageAnswer(data=[vector_answer(vector) for vector in page.vectors], next_cursor=page.next_cursor)


@router.get("/v1/vectors/{name}")
async def read(name: str, query: Annotated[VersionQuery, Query()], store: StoreDep) -> VectorAnswer:
    """Metadata and quality card of `name` or `name@version`."""
    return vector_answer(await vector_at(store, name, query.version))


@router.get("/v1/vectors/{name}/directions")
async def read_directions(
    name: str, query: Annotated[DirectionsQuery, Query()], store: StoreDep
) -> dict[str, list[float]]:
    """The numbers: unit directions by layer."""
    vector = await vector_at(store, name, query.version)
    layers = None if query.layers is None else [int(layer) for layer in query.layers.split(",")]
    return await asyncio.to_thread(directions, vector, layers)


@router.get("/v1/vectors/{name}/export", response_class=Response)
async def export(name: str, query: Annotated[ExportQuery, Query()], store: StoreDep) -> Response:
    """The vector as a file."""
    vector = await vector_at(store, name, query.version)
    return await asyncio.to_thread(export_file, vector, query.format, query.layers)


@router.get("/v1/vectors/{name}/similar")
async def similar(name: str, query: Annotated[VersionQuery, Query()], store: StoreDep) -> SimilarAnswer:
    """Cosine to every other vector of the same model."""
    return await similar_vectors(store, await vector_at(store, name, query.version))


@router.patch("/v1/vectors/{name}")
async def describe(name: str, body: DescribeRequest, store: StoreDep) -> VectorAnswer:
    """Changes what is said about a name, never its numbers."""
    return vector_answer(await store.vectors.describe(name, body.description, body.tags))


@router.delete("/v1/vectors/{name}", status_code=204)
async def delete(name: str, query: Annotated[DeleteQuery, Query()], store: StoreDep) -> None:
    """Deletes all versions; refused while a profile names it, unless forced."""
    await store.vectors.delete(name, query.force)
