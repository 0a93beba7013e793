"""POST /v1/generate/batch: answers many prompts as one job, JSON lines in, JSON lines out, at background priority."""

import asyncio
import secrets
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from app.api.context import Context, ContextDep
from app.api.generate import check_generation, prepare_generation
from app.api.jobs import jobs_of
from app.api.keys import ApiKeys
from app.api.policy import ActivePolicy, Policy
from app.core.admission import check_limit
from app.core.errors import InvalidApiKey, RateLimited, error_detail, invalid
from app.core.requests import JsonLinesRoute, needs
from app.core.settings import Settings
from steering.errors import InvalidRequest, Overloaded, SteeringError, Unavailable
from steering.plan.types import SteeringPlan
from steering.schemas.generation import JSON_LINES, BatchLine, BatchResult, BatchSummary, GenerateAnswer
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
KIND = "generate_batch"

router = APIRouter(route_class=JsonLinesRoute, tags=["generation"])


@router.post(
    "/v1/generate/batch",
    status_code=202,
    openapi_extra={**needs("generate"), "requestBody": {"required": True, "content": JSON_LINES}},
)
async def generate_batch(request: Request, context: ContextDep) -> JobAnswer:
    """Answers many prompts in the background: one request of /v1/generate per line, one line of output for each."""
    lines = await run_in_thread(parse_lines, await request.body(), context.settings)
    context.admission.reserve(len(lines) * LINE_BYTES)
    batch = Batch(context, tuple(lines.values()), context.state[Policy].active)
    for checked, (number, line) in enumerate(lines.items(), start=1):
        try:
            check_generation(context, line)
            await batch.plan_of(line)
        except SteeringError as error:
            raise _at_line(error, number) from None
        if checked % PART_LINES == 0:
            await asyncio.sleep(0)  # other requests are served between lines
    stored = {"requests": len(lines), "output": batch.output}  # nothing of the prompts
    return await jobs_of(context).submit(KIND, stored, batch.run)


def parse_lines(content: bytes, settings: Settings) -> dict[int, BatchLine]:
    """Parses JSON lines by their numbers in the body; blank ones are skipped. Raises LimitExceeded for too many,
    InvalidRequest naming the line, also for an id that two lines have."""
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
    known: dict[str, int] = {}
    for number, line in lines.items():
        if line.id is not None and known.setdefault(line.id, number) != number:
            reason = f"id: {line.id[:40]!r} is also that of line {known[line.id]}"
            raise _at_line(InvalidRequest(reason, param="id"), number)
    return lines


def _at_line(error: SteeringError, number: int) -> SteeringError:
    param = f"line {number}" + ("" if error.param is None else f": {error.param}")
    return type(error)(f"line {number}: {error.message}", param=param)


@dataclass(slots=True, eq=False)
class Batch:
    """A batch that has been checked, and its results. Those that are early wait in memory for those before them.
    next, part: the number of stored lines, and of the parts in which they are stored."""

    context: Context
    lines: tuple[BatchLine, ...]
    policy: ActivePolicy
    plans: dict[str, SteeringPlan] = field(default_factory=dict)
    output: str = field(default_factory=lambda: f"out-{secrets.token_hex(12)}")
    waiting: dict[int, str] = field(default_factory=dict)
    next: int = 0
    part: int = 0
    done: int = 0
    failed: int = 0
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def run(self, progress: Progress) -> dict[str, Any]:
        """Answers every request and stores the results in the order of the lines, part by part. A request that fails
        has its error in its line. What ends the engine ends the job; the parts stored so far remain."""
        total, indices = len(self.lines), iter(range(len(self.lines)))
        at_once = max(1, BACKGROUND_CONCURRENCY // max(line.n for line in self.lines))

        async def answer_next() -> None:
            for index in indices:
                result = await self._result(index)
                text = await run_in_thread(result.model_dump_json, exclude_none=True, ensure_ascii=True)
                self.waiting[index] = text + "\n"
                self.done += 1
                self.failed += result.error is not None
                await self._store()
                progress(self.done, total, "generating")

        await gathered([answer_next() for _ in range(min(at_once, total))])
        await self._store(everything=True)
        return BatchSummary(requests=total, succeeded=total - self.failed, failed=self.failed).model_dump()

    async def plan_of(self, line: BatchLine) -> SteeringPlan:
        """Resolves the steering of a line. Raises LimitExceeded for too many steerings. Each is resolved once, so that
        a new version of a vector does not change a batch that runs. A new policy holds for the lines that are still to
        be answered: their steerings are resolved again, with the newest versions."""
        policy = self.context.state[Policy].active
        if policy is not self.policy:
            self.policy, self.plans = policy, {}
        key = line.model_dump_json(include={"steering"})
        plans = self.plans  # of this policy: another line may replace it while this one waits
        if key not in plans:
            check_limit(len(plans) + 1, MAX_STEERINGS, "different steerings", "steering")
            plans[key] = await self.context.plan(line.steering)
        return plans[key]

    async def _result(self, index: int) -> BatchResult:
        line = self.lines[index]
        try:
            return BatchResult(index=index, id=line.id, response=await self._answered(line))
        except (Unavailable, InvalidApiKey):  # the engine or the store, or the key is no longer known: ends the job
            raise
        except SteeringError as error:  # this request only
            return BatchResult(index=index, id=line.id, error=error_detail(error))

    async def _answered(self, line: BatchLine) -> GenerateAnswer:
        """Waits while the key is over its limit or the queue is full. A request that takes more than its key may use
        fails. Every try begins with the key and the plan: while the line waited, both may have changed. Raises
        InvalidApiKey."""
        charge = True
        while True:
            try:
                key = self.context.state[ApiKeys].current(self.context.key)
                with closing(self.context.admission.apart()) as admission:
                    context = replace(self.context, key=key, admission=admission)
                    work = await prepare_generation(context, line, await self.plan_of(line))
                    if charge:
                        context.charge(work.cost)
                    charge = False
                    work.request = replace(work.request, priority=1)
                    answer = await run_in_thread(await work.run())
                if line.record:
                    return answer
                return answer.model_copy(update={"steering": answer.steering.model_copy(update={"record": None})})
            except RateLimited as error:
                if error.never:
                    raise
                await asyncio.sleep(error.retry_after)
            except Overloaded:
                await asyncio.sleep(RETRY_SECONDS)

    async def _store(self, *, everything: bool = False) -> None:
        """Stores what is complete: whole parts, or `everything`."""
        context, writer = self.context, Writer(self.context.key.name, self.context.key.limits.storage_bytes)
        async with self.writing:
            while True:
                part = range(self.next, self.next + PART_LINES)
                ready = list(takewhile(self.waiting.__contains__, part))
                if not ready or (len(ready) < PART_LINES and not everything):
                    return
                content = "".join(self.waiting[index] for index in ready)
                await context.state.store.outputs.append(self.output, self.part, content, context.namespace, writer)
                for index in ready:
                    del self.waiting[index]
                self.part, self.next = self.part + 1, self.next + len(ready)
