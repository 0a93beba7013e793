"""POST /v1/generate/batch: answers many prompts as one job, JSON lines in, JSON lines out, at background priority."""

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from app.api.context import Context, ContextDep
from app.api.generate import check_generation, generate_answer, prepare_generation
from app.api.jobs import jobs_of
from app.api.keys import ApiKeys
from app.api.policy import Policy
from app.core.admission import check_limit
from app.core.errors import InvalidApiKey, RateLimited, error_detail, invalid
from app.core.requests import JsonLinesRoute, needs
from app.core.settings import Settings
from steering.errors import InvalidRequest, Overloaded, SteeringError, Unavailable
from steering.plan.types import SteeringPlan
from steering.schemas.generation import (
    JSON_LINES,
    BatchLine,
    BatchResult,
    BatchSummary,
    GenerateAnswer,
)
from steering.schemas.resources import JobAnswer
from steering.store.records import Writer
from steering.strict_json import load_json
from steering.threads import run_in_thread
from steering.workflows.generate import BACKGROUND_CONCURRENCY, Progress, gathered

MAX_STEERINGS = 256
"""Different steerings of one batch; a plan is held for each until the job ends."""
PART_LINES = 100
"""Result lines that are stored together."""
LINE_BYTES = 2048
"""Memory of a parsed line besides its values: its model with all fields."""
RETRY_SECONDS = 0.5
"""Pause before a request that found the queue full is tried again."""

router = APIRouter(route_class=JsonLinesRoute, tags=["generation"])


@router.post(
    "/v1/generate/batch",
    status_code=202,
    openapi_extra={**needs("generate"), "requestBody": {"required": True, "content": JSON_LINES}},
)
async def generate_batch(request: Request, context: ContextDep) -> JobAnswer:
    """Answers many prompts in the background: one request of /v1/generate per line, one line of output for each."""
    work = await _prepare(context, await request.body())
    return await jobs_of(context).submit(KIND, work.request, lambda p: _run(work, p))


KIND = "generate_batch"


class Plans:
    """The steerings of a batch, each resolved once, so that a new version of a vector does not change a batch that runs.

    A new policy holds for the lines that are still to be answered: their steerings are then resolved again, with the newest
    versions.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._policy = context.state[Policy].active
        self._known: dict[str, SteeringPlan] = {}

    async def of(self, line: BatchLine) -> SteeringPlan:
        """Returns the plan of a line. Raises LimitExceeded for too many steerings, and what resolving one raises."""
        policy = self._context.state[Policy].active
        if policy is not self._policy:
            self._policy, self._known = policy, {}
        key = line.model_dump_json(include={"steering"})
        known = self._known  # of this policy: another line may replace it while this one waits
        if key not in known:
            check_limit(len(known) + 1, MAX_STEERINGS, "different steerings", "steering")
            known[key] = await self._context.plan(line.steering)
        return known[key]


@dataclass(frozen=True, slots=True, eq=False)
class PreparedBatch:
    """A batch that has been checked."""

    context: Context
    lines: tuple[BatchLine, ...]
    plans: Plans
    output: str = field(default_factory=lambda: f"out-{secrets.token_hex(12)}")

    @property
    def request(self) -> dict[str, Any]:
        """What the job's record stores of the request: nothing of the prompts."""
        return {"requests": len(self.lines), "output": self.output}


async def _prepare(context: Context, content: bytes) -> PreparedBatch:
    """Parses and checks every line, and resolves every steering. Raises InvalidRequest naming the line."""
    lines = await run_in_thread(parse_lines, content, context.settings)
    context.admission.reserve(len(lines) * LINE_BYTES)
    plans = Plans(context)
    for checked, (number, line) in enumerate(lines.items(), start=1):
        try:
            check_generation(context, line)
            await plans.of(line)
        except SteeringError as error:
            raise _at_line(error, number) from None
        if checked % PART_LINES == 0:
            await asyncio.sleep(0)  # other requests are served between lines
    return PreparedBatch(context, tuple(lines.values()), plans)


def parse_lines(content: bytes, settings: Settings) -> dict[int, BatchLine]:
    """Parses JSON lines by their numbers in the body; blank ones are skipped. Raises InvalidRequest naming the line, LimitExceeded for too many."""
    written = [(number, text) for number, text in enumerate(content.split(b"\n"), start=1) if text.strip()]
    check_limit(len(written), settings.max_batch_requests, "requests", "body")
    if not written:
        raise InvalidRequest("a batch needs at least one line", param="body")
    lines: dict[int, BatchLine] = {}
    for number, text in written:
        where = f"line {number}"
        value = load_json(text, where, param=where, depth=settings.max_json_depth)
        try:
            lines[number] = BatchLine.model_validate(value)
        except ValidationError as error:
            findings = [{**one, "loc": ("body", *one["loc"])} for one in error.errors(include_url=False)]
            raise _at_line(invalid(RequestValidationError(findings, body=value)), number) from None
    _check_ids(lines)
    return lines


def _check_ids(lines: Mapping[int, BatchLine]) -> None:
    """Raises InvalidRequest for an id that two lines have: it would not say which result is whose."""
    known: dict[str, int] = {}
    for number, line in lines.items():
        if line.id is not None and known.setdefault(line.id, number) != number:
            reason = f"id: {line.id[:40]!r} is also that of line {known[line.id]}"
            raise _at_line(InvalidRequest(reason, param="id"), number)


def _at_line(error: SteeringError, number: int) -> SteeringError:
    """Returns the error with the number of its line."""
    param = f"line {number}" + ("" if error.param is None else f": {error.param}")
    return type(error)(f"line {number}: {error.message}", param=param)


async def _run(work: PreparedBatch, progress: Progress) -> dict[str, Any]:
    """Answers every request and stores the results in the order of the lines, part by part.

    A request that fails has its error in its line. What ends the engine ends the job; the parts stored so far remain.
    """
    at_once = max(1, BACKGROUND_CONCURRENCY // max(line.n for line in work.lines))
    writer = _Writer(work, progress)
    waiting = iter(range(len(work.lines)))

    async def answer_waiting() -> None:
        for index in waiting:
            await writer.add(index, await _result(work, index))

    await gathered([answer_waiting() for _ in range(min(at_once, len(work.lines)))])
    await writer.flush(everything=True)
    failed = writer.failed
    return BatchSummary(requests=len(work.lines), succeeded=len(work.lines) - failed, failed=failed).model_dump()


async def _result(work: PreparedBatch, index: int) -> BatchResult:
    line = work.lines[index]
    try:
        return BatchResult(index=index, id=line.id, response=await _answered(work, line))
    except (Unavailable, InvalidApiKey):  # the engine or the store, or the key is no longer known: ends the job
        raise
    except SteeringError as error:  # this request only
        return BatchResult(index=index, id=line.id, error=error_detail(error))


async def _answered(work: PreparedBatch, line: BatchLine) -> GenerateAnswer:
    """Waits while the key is over its limit or the queue is full. A request that takes more than its key may use fails.

    Every try begins with the key and the plan: while the line waited, both may have changed. Raises InvalidApiKey.
    """
    charge = True
    while True:
        try:
            context = replace(work.context, key=work.context.state[ApiKeys].current(work.context.key))
            plan = await work.plans.of(line)
            prepared = await prepare_generation(context, line, plan)
            if charge:
                context.charge_tokens(prepared.cost)
            charge = False
            answer = await generate_answer(replace(prepared, request=replace(prepared.request, priority=1)))
            if line.record:
                return answer
            return answer.model_copy(update={"steering": answer.steering.model_copy(update={"record": None})})
        except RateLimited as error:
            if error.never:
                raise
            await asyncio.sleep(error.retry_after)
        except Overloaded:
            await asyncio.sleep(RETRY_SECONDS)


class _Writer:
    """Stores results in order. Those that are early wait in memory for those before them."""

    def __init__(self, work: PreparedBatch, progress: Progress) -> None:
        self._work, self._progress = work, progress
        self._waiting: dict[int, str] = {}
        self._next = self._part = self._done = self.failed = 0
        self._writing = asyncio.Lock()

    async def add(self, index: int, result: BatchResult) -> None:
        text = await run_in_thread(lambda: result.model_dump_json(exclude_none=True, ensure_ascii=True))
        self._waiting[index] = text + "\n"
        self._done += 1
        self.failed += result.error is not None
        await self.flush()
        self._progress(self._done, len(self._work.lines), "generating")

    async def flush(self, everything: bool = False) -> None:
        """Stores what is complete: whole parts, or `everything`."""
        async with self._writing:
            while True:
                ready = self._ready()
                if not ready or (len(ready) < PART_LINES and not everything):
                    return
                content = "".join(self._waiting[index] for index in ready)
                context = self._work.context
                writer = Writer(context.key.name, context.key.limits.storage_bytes)
                await context.state.store.outputs.append(
                    self._work.output, self._part, content, context.namespace, writer
                )
                for index in ready:
                    del self._waiting[index]
                self._part, self._next = self._part + 1, self._next + len(ready)

    def _ready(self) -> Sequence[int]:
        end = self._next
        while end in self._waiting and end - self._next < PART_LINES:
            end += 1
        return range(self._next, end)
