"""/v1/vectors: register, combine, extract, transfer, import, list, read, export, compare, describe, delete. /v1/evaluations. Long work
is a job, for which the caller may wait."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel
from starlette.responses import Response

from app.http.answers import json_in_thread
from app.http.dependencies import AdmittedDep, ContextDep
from app.http.errors import json_response
from app.http.request_reading import BINARY, ApiRoute, BinaryRoute, UploadRoute
from app.services.context import Context
from app.services.jobs import Work, job_request
from app.services.limits import check_limit
from app.services.resources import damage_warnings, directions, job_answer, vector_answer
from app.services.vectors import evaluate as evaluation
from app.services.vectors import extract as extraction
from app.services.vectors import report as reporting
from app.services.vectors import transfer as transferring
from app.services.vectors.files import export_file, file_bytes, import_file
from app.services.vectors.similar import similar_vectors
from app.services.vectors.versions import delete_vector, describe_vector, list_versions
from steering.schemas.base import WaitQuery
from steering.schemas.evaluation import EvaluationAnswer, EvaluationRequest
from steering.schemas.evaluation.report import ReportRequest
from steering.schemas.extraction import ExtractRequest, TransferAnswer, TransferRequest
from steering.schemas.resources import JobAnswer
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


def _job(status: int, model: Any, found: str) -> dict[str, Any]:
    """Returns the options of a route that answers with a job; with `wait=true` with what the job found, a `model`."""
    waited = {"model": model, "description": f"With wait=true: {found}"}
    return {"status_code": 202, "response_model": JobAnswer, "responses": {status: waited}}


@uploads.post("/v1/vectors", status_code=201)
async def register(body: RegisterRequest, context: ContextDep) -> VectorAnswer:
    """Stores given directions as the next version of a name."""
    vector = await run_in_thread(
        registered, context.engine.info, body.name, body.directions, body.scale, body.description, tuple(body.tags)
    )
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


@files.post("/v1/vectors/import", status_code=201, openapi_extra={"requestBody": {"required": True, "content": BINARY}})
async def import_vector(request: Request, query: Annotated[ImportQuery, Query()], context: ContextDep) -> VectorAnswer:
    """Stores the vector in one safetensors file."""
    vector = await run_in_thread(import_file, await request.body(), query.name, context.engine.info)
    return vector_answer(await context.store.vectors.put(vector))


@router.get("/v1/vectors", response_model=VectorPageAnswer)
async def find(query: Annotated[VectorQuery, Query()], context: ContextDep) -> Response:
    """Lists the newest version of each name, by name."""
    check_limit(query.limit, context.settings.max_page, "entries per page", "limit")
    where = VectorFilter(query.tag, query.method, query.search)
    page = await context.store.vectors.find(where, query.limit, query.cursor)

    def build() -> VectorPageAnswer:
        found, warnings = [vector_answer(vector) for vector in page.vectors], damage_warnings(page.damaged)
        return VectorPageAnswer(data=found, next_cursor=page.next_cursor, warnings=warnings)

    return await json_in_thread(build)


@router.get("/v1/vectors/{name}")
async def read(name: str, query: Annotated[VersionQuery, Query()], context: ContextDep) -> VectorAnswer:
    """Returns metadata and quality card of `name` or `name@version`."""
    return vector_answer(await context.vector(name, "name", query.version))


@router.get("/v1/vectors/{name}/directions", response_model=dict[str, list[float]])
async def read_directions(name: str, query: Annotated[DirectionsQuery, Query()], context: ContextDep) -> Response:
    """Returns the unit directions by layer."""
    vector = await context.vector(name, "name", query.version)
    context.admission.reserve(file_bytes(vector))
    layers = None if query.layers is None else [int(layer) for layer in query.layers.split(",")]
    return await json_in_thread(lambda: directions(vector, layers))


@router.get("/v1/vectors/{name}/export", response_class=Response)
async def export(name: str, query: Annotated[ExportQuery, Query()], context: ContextDep) -> Response:
    """Returns the vector as a file."""
    vector = await context.vector(name, "name", query.version)
    context.admission.reserve(file_bytes(vector))
    return await run_in_thread(export_file, vector, query.format, query.layers)


@router.get("/v1/vectors/{name}/similar")
async def similar(name: str, query: Annotated[VersionQuery, Query()], context: ContextDep) -> SimilarAnswer:
    """Returns the cosine to every other vector of the same model."""
    vector = await context.vector(name, "name", query.version)
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


@uploads.post("/v1/vectors/extract", **_job(201, VectorAnswer, "the vector"))
async def extract(body: ExtractRequest, query: Annotated[WaitQuery, Query()], context: AdmittedDep) -> Response:
    """Reads every text once and fits a direction at every layer requested, measured on held-out topics."""
    work = await extraction.prepare(context, body)
    return await _respond(context, "extract", body, work, query.wait, 201, part="vector")


@uploads.post("/v1/vectors/transfer", **_job(201, TransferAnswer, "the vector and its loss"))
async def transfer(body: TransferRequest, query: Annotated[WaitQuery, Query()], context: AdmittedDep) -> Response:
    """Carries a direction of the second model to the loaded one by a map that is fitted on texts both read, and measures the loss."""
    work = await transferring.prepare(context, body)
    return await _respond(context, "transfer", body, work, query.wait, 201)


@router.post("/v1/evaluations", **_job(200, EvaluationAnswer, "the result"))
async def evaluate(body: EvaluationRequest, query: Annotated[WaitQuery, Query()], context: AdmittedDep) -> Response:
    """Steers many answers, reads them back unsteered, and reports effect, damage and chance level."""
    if isinstance(body, ReportRequest):
        work = await reporting.prepare(context, body)
    else:
        work = await evaluation.prepare(context, body)
    return await _respond(context, body.kind, body, work, query.wait, 200)


async def _respond(
    context: Context, kind: str, body: BaseModel, job: Work, wait: bool, status: int, part: str | None = None
) -> Response:
    """Returns the result, or a part of it, with `status` once the job has ended; without `wait` 202 and the queued job."""
    context.admission.release_rows()  # a job has limits of its own
    request = job_request(body)
    if wait:
        result = await context.jobs.complete(kind, request, job)
        return await json_in_thread(lambda: dict(result) if part is None else result[part], status=status)
    queued = await context.jobs.submit(kind, request, job)
    return json_response(job_answer(queued).model_dump(mode="json"), 202)
