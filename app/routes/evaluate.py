"""POST /v1/evaluations: a layer sweep or a dose-response of a vector, as a job or while the caller waits."""

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from app.http.dependencies import JobsDep, LeaseDep, StateDep
from app.http.errors import json_response
from app.http.request_reading import ApiRoute
from app.services.evaluate import checked, job_words
from app.services.responses import job_answer
from steering.schemas.evaluation import EvaluateQuery, EvaluationAnswer, EvaluationRequest
from steering.schemas.jobs import JobAnswer
from steering.workflows.progress import ignore_progress

router = APIRouter(route_class=ApiRoute, tags=["vectors"])


@router.post(
    "/v1/evaluations",
    status_code=202,
    response_model=JobAnswer,
    responses={200: {"model": EvaluationAnswer, "description": "With wait=true: the result"}},
)
async def evaluate(
    body: EvaluationRequest,
    query: Annotated[EvaluateQuery, Query()],
    state: StateDep,
    jobs: JobsDep,
    lease: LeaseDep,
) -> Response:
    """Steers many answers, reads them back without steering, and says what moved, what broke, and what chance does."""
    evaluation = await checked(state, body)
    if query.wait:
        return json_response(dict(await evaluation.job(ignore_progress)), 200)
    lease.close()  # a job waits in a queue of its own
    job = await jobs.submit(body.kind, job_words(body), evaluation.job)
    return json_response(job_answer(job).model_dump(mode="json"), 202)
