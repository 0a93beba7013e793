"""/v1/jobs: long work, watched and cancelled."""

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from app.http.dependencies import JobsDep, StateDep
from app.http.request_reading import ApiRoute
from app.http.streaming import event_stream, job_events
from app.services.inputs import check_limit
from app.services.responses import job_answer
from steering.schemas.base import PageQuery
from steering.schemas.jobs import JobAnswer, JobPage

router = APIRouter(route_class=ApiRoute, tags=["jobs"])


@router.get("/v1/jobs")
async def find(query: Annotated[PageQuery, Query()], state: StateDep, jobs: JobsDep) -> JobPage:
    """Newest first."""
    check_limit(query.limit, state.settings.max_page, "entries a page", "limit")
    records, following = await jobs.find(query.limit, query.cursor)
    return JobPage(data=[job_answer(record) for record in records], next_cursor=following)


@router.get("/v1/jobs/{job_id}")
async def read(job_id: str, jobs: JobsDep) -> JobAnswer:
    """One job as it stands."""
    return job_answer(await jobs.get(job_id))


@router.delete("/v1/jobs/{job_id}")
async def cancel(job_id: str, jobs: JobsDep) -> JobAnswer:
    """Stops it; a job that has ended stays as it is."""
    return job_answer(await jobs.cancel(job_id))


@router.get(
    "/v1/jobs/{job_id}/events", response_class=Response, responses={200: {"content": {"text/event-stream": {}}}}
)
async def watch(job_id: str, state: StateDep, jobs: JobsDep) -> Response:
    """`progress` events as it goes on, then `done` with its final record."""
    await jobs.get(job_id)
    return await event_stream(state, job_events(jobs, job_id))
