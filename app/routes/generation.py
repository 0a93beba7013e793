"""POST /v1/generate, /v1/generate/batch, /v1/compare, /v1/replay: text, steered, plain, as a stream or a job."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.http.dependencies import AdmittedDep, ContextDep
from app.http.request_reading import ApiRoute, JsonLinesRoute, needs
from app.http.streaming import event_stream
from app.services.generation import batch as batches
from app.services.generation import compare as comparison
from app.services.generation import generate as generation
from app.services.generation import replay as repetition
from app.services.resources import job_answer
from steering.schemas.comparison import CompareAnswer, CompareRequest
from steering.schemas.generation import JSON_LINES, GenerateAnswer, GenerateRequest
from steering.schemas.resources import JobAnswer
from steering.schemas.steering import ReplayRequest

router = APIRouter(route_class=ApiRoute, tags=["generation"])
lines = APIRouter(route_class=JsonLinesRoute, tags=["generation"])
_TEXT: dict[str, Any] = {"openapi_extra": needs("generate")}
_STREAM: dict[str, Any] = {"responses": {200: {"content": {"text/event-stream": {}}}}}


@router.post("/v1/generate", response_model=GenerateAnswer, **_TEXT, **_STREAM)
async def generate(body: GenerateRequest, context: AdmittedDep) -> Response:
    """Answers a prompt: the text, the seed that repeats it, and the applied steering."""
    work = await generation.prepare(context, body)
    context.admit(work.n, work.cost)
    if body.stream:
        return await event_stream(context.state, generation.events(work))
    return await generation.response(work)


@router.post("/v1/compare", response_model=CompareAnswer, **_TEXT, **_STREAM)
async def compare(body: CompareRequest, context: AdmittedDep) -> Response:
    """Answers a prompt with several arms: the text and metrics of each, and the differences from the baseline."""
    work = await comparison.prepare(context, body)
    context.admit(work.rows, work.cost)
    if body.stream:
        return await event_stream(context.state, comparison.events(work))
    return await comparison.response(work)


@router.post("/v1/replay", response_model=GenerateAnswer, **_TEXT)
async def replay(body: ReplayRequest, context: AdmittedDep) -> Response:
    """Repeats an answer. The body is `steering.record` of that answer, and its inline `directions` if it had any."""
    work = await repetition.prepare(context, body)
    context.admit(work.n, work.cost)
    return await generation.response(work)


@lines.post(
    "/v1/generate/batch",
    status_code=202,
    openapi_extra={**needs("generate"), "requestBody": {"required": True, "content": JSON_LINES}},
)
async def generate_batch(request: Request, context: ContextDep) -> JobAnswer:
    """Answers many prompts in the background: one request of /v1/generate per line, one line of output for each."""
    work = await batches.prepare(context, await request.body())
    return job_answer(await context.jobs.submit(batches.KIND, work.request, lambda p: batches.job(work, p)))
