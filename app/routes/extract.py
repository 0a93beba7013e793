"""POST /v1/vectors/extract: a vector made from contrasting texts, as a job or while the caller waits."""

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from app.http.dependencies import JobsDep, LeaseDep, StateDep
from app.http.errors import json_response
from app.http.request_reading import UploadRoute
from app.services.extract import checked, job_words
from app.services.responses import job_answer, vector_answer
from steering.schemas.extraction import ExtractQuery, ExtractRequest
from steering.schemas.jobs import JobAnswer
from steering.schemas.vectors import VectorAnswer
from steering.workflows.progress import ignore_progress

router = APIRouter(route_class=UploadRoute, tags=["vectors"])


@router.post(
    "/v1/vectors/extract",
    status_code=202,
    response_model=JobAnswer,
    responses={201: {"model": VectorAnswer, "description": "With wait=true: the vector"}},
)
async def extract(
    body: ExtractRequest,
    query: Annotated[ExtractQuery, Query()],
    state: StateDep,
    jobs: JobsDep,
    lease: LeaseDep,
) -> Response:
    """Reads every text once and fits a direction at every layer asked, proved on held-out topics."""
    extraction = await checked(state, body)
    if query.wait:
        return json_response(vector_answer(await extraction.run(ignore_progress)).model_dump(mode="json"), 201)
    lease.close()  # a job waits in a queue of its own
    job = await jobs.submit("extract", job_words(body), extraction.job)
    return json_response(job_answer(job).model_dump(mode="json"), 202)
