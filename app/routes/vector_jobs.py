"""POST /v1/vectors/extract, /v1/vectors/transfer and /v1/evaluations: long work on vectors, as a job or while the caller waits."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.responses import Response

from app.http.dependencies import AdmittedDep
from app.http.errors import json_response
from app.http.request_reading import ApiRoute, UploadRoute
from app.services.jobs import Work, job_request
from app.services.resources import job_answer
from app.services.vectors import evaluate as evaluation
from app.services.vectors import extract as extraction
from app.services.vectors import report as reporting
from app.services.vectors import transfer as transferring
from steering.schemas.base import WaitQuery
from steering.schemas.evaluation import EvaluationAnswer, EvaluationRequest
from steering.schemas.evaluation.report import ReportRequest
from steering.schemas.extraction import ExtractRequest, TransferAnswer, TransferRequest
from steering.schemas.resources import JobAnswer
from steering.schemas.vectors import VectorAnswer

uploads = APIRouter(route_class=UploadRoute, tags=["vectors"])
router = APIRouter(route_class=ApiRoute, tags=["vectors"])


@dataclass(frozen=True, slots=True)
class _Job:
    """Work in the background. request: what its record stores. body: the part of the result that a waiting caller gets."""

    kind: str
    request: Mapping[str, Any]
    work: Work
    body: Callable[[Mapping[str, Any]], Any] = dict


async def _respond(context: AdmittedDep, job: _Job, *, wait: bool, status: int) -> Response:
    """Returns the result with `status` once the job has ended, or 202 and the queued job."""
    context.admission.release_rows()  # a job has limits of its own
    if wait:
        return json_response(job.body(await context.jobs.complete(job.kind, job.request, job.work)), status)
    queued = await context.jobs.submit(job.kind, job.request, job.work)
    return json_response(job_answer(queued).model_dump(mode="json"), 202)


@uploads.post(
    "/v1/vectors/extract",
    status_code=202,
    response_model=JobAnswer,
    responses={201: {"model": VectorAnswer, "description": "With wait=true: the vector"}},
)
async def extract(body: ExtractRequest, query: Annotated[WaitQuery, Query()], context: AdmittedDep) -> Response:
    """Reads every text once and fits a direction at every layer requested, measured on held-out topics."""
    work = await extraction.prepare(context, body)
    job = _Job("extract", job_request(body), work, lambda result: result["vector"])
    return await _respond(context, job, wait=query.wait, status=201)


@uploads.post(
    "/v1/vectors/transfer",
    status_code=202,
    response_model=JobAnswer,
    responses={201: {"model": TransferAnswer, "description": "With wait=true: the vector and its loss"}},
)
async def transfer(body: TransferRequest, query: Annotated[WaitQuery, Query()], context: AdmittedDep) -> Response:
    """Carries a direction of the second model to the loaded one by a map that is fitted on texts both read, and measures the loss."""
    work = await transferring.prepare(context, body)
    job = _Job("transfer", job_request(body), work)
    return await _respond(context, job, wait=query.wait, status=201)


@router.post(
    "/v1/evaluations",
    status_code=202,
    response_model=JobAnswer,
    responses={200: {"model": EvaluationAnswer, "description": "With wait=true: the result"}},
)
async def evaluate(body: EvaluationRequest, query: Annotated[WaitQuery, Query()], context: AdmittedDep) -> Response:
    """Steers many answers, reads them back unsteered, and reports effect, damage and chance level."""
    if isinstance(body, ReportRequest):
        work = await reporting.prepare(context, body)
    else:
        work = await evaluation.prepare(context, body)
    return await _respond(context, _Job(body.kind, job_request(body), work), wait=query.wait, status=200)
