"""/v1/jobs: list, watch and cancel jobs."""

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from app.http.dependencies import ContextDep
from app.http.request_reading import ApiRoute
from app.http.streaming import FileStream, event_stream, job_events
from app.services.generation import batch
from app.services.limits import check_limit
from app.services.resources import job_answer, job_page
from steering.schemas.base import NamespacePageQuery
from steering.schemas.generation import JSON_LINES
from steering.schemas.resources import JobAnswer, JobPage

router = APIRouter(route_class=ApiRoute, tags=["jobs"])


@router.get("/v1/jobs")
async def find(query: Annotated[NamespacePageQuery, Query()], context: ContextDep) -> JobPage:
    """Lists jobs without their results, newest first."""
    check_limit(query.limit, context.settings.max_page, "entries per page", "limit")
    return job_page(await context.jobs.find(query.limit, query.cursor))


@router.get("/v1/jobs/{job_id}")
async def read(job_id: str, context: ContextDep) -> JobAnswer:
    """Returns the current state of one job."""
    return job_answer(await context.jobs.get(job_id))


@router.delete("/v1/jobs/{job_id}")
async def cancel(job_id: str, context: ContextDep) -> JobAnswer:
    """Cancels a job. A job that has ended is unchanged."""
    return job_answer(await context.jobs.cancel(job_id))


@router.get(
    "/v1/jobs/{job_id}/events", response_class=Response, responses={200: {"content": {"text/event-stream": {}}}}
)
async def watch(job_id: str, context: ContextDep) -> Response:
    """Streams `progress` events, then `done` with the final record."""
    await context.jobs.get(job_id)
    return await event_stream(context.state, job_events(context.jobs, job_id))


@router.get("/v1/jobs/{job_id}/output", response_class=Response, responses={200: {"content": JSON_LINES}})
async def output(job_id: str, context: ContextDep) -> Response:
    """Returns the results of a batch as JSON lines, also while it runs and after it was cancelled."""
    pieces = batch.output(context, await context.jobs.get(job_id))
    return FileStream(pieces, f"{job_id}.jsonl", context.state, media_type="application/jsonl")
