"""POST /v1/vectors/extract, /v1/vectors/transfer and /v1/evaluations: long work on vectors, as a job or while the caller waits."""

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from app.http.dependencies import AdmittedDep
from app.http.errors import json_response
from app.http.request_reading import ApiRoute, UploadRoute
from app.services.jobs import Work
from app.services.resources import job_answer
from app.services.vectors import evaluate as evaluation
from app.services.vectors import extract as extraction
from app.services.vectors import report as reporting
from app.services.vectors import transfer as transferring
from steering.schemas.evaluation import EvaluateQuery, EvaluationAnswer, EvaluationRequest
from steering.schemas.evaluation.report import ReportRequest
from steering.schemas.extraction import ExtractQuery, ExtractRequest
from steering.schemas.jobs import JobAnswer
from steering.schemas.transfer import TransferAnswer, TransferRequest
from steering.schemas.vectors import VectorAnswer

uploads = APIRouter(route_class=UploadRoute, tags=["vectors"])
router = APIRouter(route_class=ApiRoute, tags=["vectors"])


@uploads.post(
    "/v1/vectors/extract",
    status_code=202,
    response_model=JobAnswer,
    responses={201: {"model": VectorAnswer, "description": "With wait=true: the vector"}},
)
async def extract(body: ExtractRequest, query: Annotated[ExtractQuery, Query()], context: AdmittedDep) -> Response:
    """Reads every text once and fits a direction at every layer requested, measured on held-out topics."""
    work = await extraction.prepare(context, body)
    context.admission.release_rows()  # a job has limits of its own
    request = extraction.job_request(body)
    if query.wait:
        result = await context.jobs.complete("extract", request, lambda p: extraction.job(work, p))
        return json_response(result["vector"], 201)
    job = await context.jobs.submit("extract", request, lambda p: extraction.job(work, p))
    return json_response(job_answer(job).model_dump(mode="json"), 202)


@uploads.post(
    "/v1/vectors/transfer",
    status_code=202,
    response_model=JobAnswer,
    responses={201: {"model": TransferAnswer, "description": "With wait=true: the vector and its loss"}},
)
async def transfer(body: TransferRequest, query: Annotated[ExtractQuery, Query()], context: AdmittedDep) -> Response:
    """Carries a direction of the second model to the loaded one by a map that is fitted on texts both read, and measures the loss."""
    work = await transferring.prepare(context, body)
    context.admission.release_rows()  # a job has limits of its own
    request = transferring.job_request(body)
    if query.wait:
        return json_response(
            dict(await context.jobs.complete("transfer", request, lambda p: transferring.job(work, p))), 201
        )
    job = await context.jobs.submit("transfer", request, lambda p: transferring.job(work, p))
    return json_response(job_answer(job).model_dump(mode="json"), 202)


@router.post(
    "/v1/evaluations",
    status_code=202,
    response_model=JobAnswer,
    responses={200: {"model": EvaluationAnswer, "description": "With wait=true: the result"}},
)
async def evaluate(body: EvaluationRequest, query: Annotated[EvaluateQuery, Query()], context: AdmittedDep) -> Response:
    """Steers many answers, reads them back unsteered, and reports effect, damage and chance level."""
    run = await _evaluation(body, context)
    context.admission.release_rows()  # a job has limits of its own
    request = evaluation.job_request(body)
    if query.wait:
        return json_response(dict(await context.jobs.complete(body.kind, request, run)), 200)
    job = await context.jobs.submit(body.kind, request, run)
    return json_response(job_answer(job).model_dump(mode="json"), 202)


async def _evaluation(body: EvaluationRequest, context: AdmittedDep) -> Work:
    """Prepares an evaluation, and returns what runs it."""
    if isinstance(body, ReportRequest):
        report = await reporting.prepare(context, body)
        return lambda progress: reporting.job(report, progress)
    work = await evaluation.prepare(context, body)
    return lambda progress: evaluation.job(work, progress)
