"""POST /v1/generate/batch and /v1/score/batch: many requests as one job, JSON lines in, JSON lines out, at background priority."""

import asyncio
import secrets
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from io import BytesIO
from itertools import count, islice, takewhile
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from app.api.context import Context, ContextDep, chat_messages
from app.api.generate import check_generation, prepare_generation
from app.api.jobs import AWAY_SECONDS, jobs_of, outlasted, written
from app.api.keys import ApiKeys
from app.api.policy import ActivePolicy, Policy
from app.api.reading import check_score, prepare_score
from app.core.admission import Key, check_limit
from app.core.errors import InsufficientScope, InvalidApiKey, RateLimited, error_detail, invalid
from app.core.requests import JsonLinesRoute, needs
from app.core.settings import Settings
from steering.engine.api import Prompt
from steering.errors import InvalidRequest, LimitExceeded, Overloaded, SteeringError, StoreUnavailable, Unavailable
from steering.plan.types import SteeringPlan
from steering.schemas.base import ErrorDetail
from steering.schemas.generation import JSON_LINES, BatchLine, BatchResult, GenerateAnswer
from steering.schemas.reading import ScoreAnswer, ScoreLine, ScoreResult
from steering.schemas.resources import JobAnswer
from steering.schemas.steering import BatchFields
from steering.store.database import Writer
from steering.strict_json import load_json
from steering.threads import run_in_thread
from steering.workflows.generate import BACKGROUND_CONCURRENCY, Progress, gathered

MAX_STEERINGS = 256
"""Different steerings of one batch; a plan is held for each until the job ends."""
PART_LINES = 100
"""Result lines that are stored together."""
AHEAD_LINES = 2 * PART_LINES
"""Lines from the first one without a stored result on that may have been begun: one that takes long holds up those behind it."""
WAITING_BYTES = 16 << 20
"""Results that wait in memory for a line before them; beyond, no line is begun, and what can be stored is."""
LINE_BYTES = 2048
"""Memory of a parsed line besides its values: its model with all fields."""
RETRY_SECONDS = 0.5
"""Pause before a request that found the queue full is tried again."""
L = TypeVar("L", bound=BatchFields)
A = TypeVar("A", bound=BaseModel)
Run: TypeAlias = Callable[[], Awaitable[Callable[[], A]]]
"""Returns, when the work has ended, what builds the response in a thread."""

router = APIRouter(route_class=JsonLinesRoute, tags=["generation"])


LINES: dict[str, Any] = {
    "status_code": 202,
    "openapi_extra": {**needs("generate"), "requestBody": {"required": True, "content": JSON_LINES}},
}


@router.post("/v1/generate/batch", **LINES)
async def generate_batch(request: Request, context: ContextDep) -> JobAnswer:
    """Answers many prompts in the background: one request of /v1/generate per line, one line of output for each."""
    return await _submitted(request, context, GenerationBatch, BatchLine, check_generation)


@router.post("/v1/score/batch", **LINES)
async def score_batch(request: Request, context: ContextDep) -> JobAnswer:
    """Scores many requests in the background: one request of /v1/score per line, one line of output for each."""
    return await _submitted(request, context, ScoreBatch, ScoreLine, check_score)


async def _submitted(
    request: Request,
    context: Context,
    batch_type: "type[Batch[L, A]]",
    line_type: type[L],
    check: Callable[[Context, L], None],
) -> JobAnswer:
    """Parses and checks every line and queues the batch. check: raises LimitExceeded for what is beyond the operator's limits."""
    lines = await run_in_thread(parse_lines, await request.body(), context.settings, line_type)
    batch = batch_type(context, tuple(lines.values()), context.state[Policy].active)
    context.admission.reserve(len(lines) * LINE_BYTES)
    for checked, (number, line) in enumerate(lines.items(), start=1):
        try:
            check(context, line)
            await batch.plan_of(line)
        except SteeringError as error:
            raise _at_line(error, number) from None
        if checked % PART_LINES == 0:
            await asyncio.sleep(0)  # other requests are served between lines
    stored = {"requests": len(lines), "output": batch.output}  # nothing of the prompts
    return await jobs_of(context).submit(batch.kind, stored, batch.run)


def parse_lines(content: bytes, settings: Settings, kind: type[L]) -> dict[int, L]:
    """Parses JSON lines by their numbers in the body; blank ones are skipped. Raises LimitExceeded for too many of either,
    InvalidRequest naming the line, also for an id that two lines have."""
    most = settings.max_batch_requests
    written: list[tuple[int, bytes]] = []
    for number, text in enumerate(BytesIO(content), start=1):
        if not text.isspace():
            written.append((number, text))
        if len(written) > most or number - len(written) > most:
            raise LimitExceeded(f"a batch has at most {most} requests, and as many blank lines", param="body")
    if not written:
        raise InvalidRequest("a batch needs at least one line", param="body")
    lines: dict[int, L] = {}
    for number, text in written:
        where = f"line {number}"
        value = load_json(text, where, param=where, depth=settings.max_json_depth)
        try:
            lines[number] = kind.model_validate(value)
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


@dataclass(eq=False)
class Batch(ABC, Generic[L, A]):
    """A batch that has been checked, and its results. Those that are early wait in memory for those before them.
    kind: of the job. activity: the message of its progress. result_type: a line of its output.
    next, part: the first line without a stored result, and the number of the parts in which results are stored.
    patience: for how many seconds a database that is away is asked again; 0 once it did not come back."""

    kind: ClassVar[str]
    activity: ClassVar[str]
    result_type: ClassVar[type[BatchResult] | type[ScoreResult]]

    context: Context
    lines: tuple[L, ...]
    policy: ActivePolicy
    plans: dict[str, SteeringPlan] = field(default_factory=dict)
    output: str = field(default_factory=lambda: f"out-{secrets.token_hex(12)}")
    waiting: dict[int, str] = field(default_factory=dict)
    next: int = 0
    part: int = 0
    done: int = 0
    failed: int = 0
    patience: float = AWAY_SECONDS
    writing: asyncio.Condition = field(default_factory=asyncio.Condition)

    @abstractmethod
    async def prepared(self, context: Context, line: L, plan: SteeringPlan) -> tuple[int, Run[A]]:
        """Resolves a line. Returns the tokens that it counts for the key's limit, and what runs it."""

    def rows(self, line: L) -> int:
        """Returns how many rows of the batch a line takes at once."""
        del line
        return 1

    async def run(self, progress: Progress) -> dict[str, Any]:
        """Answers every request and stores the results in the order of the lines, part by part. A request that fails
        has its error in its line. What ends the engine ends the job; every result that is finished is stored, however it ends."""
        total, indices = len(self.lines), iter(range(len(self.lines)))
        most = min(BACKGROUND_CONCURRENCY, self.context.state.rate_limits.most_rows(self.context.key))
        at_once = max(1, int(most) // max(map(self.rows, self.lines)))

        async def answer_next() -> None:
            for index in indices:
                async with self.writing:
                    await self.writing.wait_for(partial(self._may_begin, index))
                found = await self._found(self.lines[index])
                result = self._result(index, found)
                text = await run_in_thread(result.model_dump_json, exclude_none=True, ensure_ascii=True)
                self.waiting[index] = text + "\n"
                self.done += 1
                self.failed += isinstance(found, ErrorDetail)
                await asyncio.shield(self._store())  # a part is stored once, also where the job ends meanwhile
                progress(self.done, total, self.activity)

        try:
            await gathered([answer_next() for _ in range(min(at_once, total))])
        finally:
            await self._store(everything=True)
        return {"requests": total, "succeeded": total - self.failed, "failed": self.failed}

    def answered(self, line: L) -> Prompt | None:  # noqa: ARG002 - for kinds that answer
        """Returns what is answered in a line; None where texts are read."""
        return None

    async def plan_of(self, line: L) -> SteeringPlan:
        """Resolves the steering of a line. Raises LimitExceeded for too many steerings. Each is resolved once, so that
        a new version of a vector does not change a batch that runs. A new policy holds for the lines that are still to
        be answered: their steerings are resolved again, with the newest versions."""
        policy = self.context.state[Policy].active
        if policy is not self.policy:
            self.policy, self.plans = policy, {}
        prompt = self.answered(line)
        key = f"{line.model_dump_json(include={'steering'})} {self.context.answers_only(prompt)}"
        plans = self.plans  # of this policy: another line may replace it while this one waits
        if key not in plans:
            check_limit(len(plans) + 1, MAX_STEERINGS, "different steerings", "steering")
            plans[key] = await self.context.plan(line.steering, prompt)
        return plans[key]

    def _result(self, index: int, found: A | ErrorDetail) -> BaseModel:
        """Returns a line of output."""
        line = self.lines[index]
        if isinstance(found, ErrorDetail):
            return self.result_type(index=index, id=line.id, error=found)
        fields = {"index": index, "id": line.id, "response": found}
        return self.result_type.model_validate(fields)

    async def _found(self, line: L) -> A | ErrorDetail:
        try:
            return await self._answered(line)
        except (Unavailable, InvalidApiKey):  # the engine or the store, or the key is no longer known: ends the job
            raise
        except SteeringError as error:  # this request only
            return error_detail(error)

    async def _answered(self, line: L) -> A:
        """Waits while the key is over its limit or the queue is full. A request that takes more than its key may use
        fails. Every try begins with the key and the plan: while the line waited, both may have changed. Raises
        InvalidApiKey."""
        charge = True
        while True:
            try:
                key = self._current_key()
                self.context.state.rate_limits.most_rows(key, self.rows(line))
                with closing(self.context.admission.apart()) as admission:
                    context = replace(self.context, key=key, admission=admission)
                    plan = await outlasted(partial(self.plan_of, line), self.patience)
                    cost, run = await self.prepared(context, line, plan)
                    if charge:
                        context.charge(cost)
                    charge = False
                    return await run_in_thread(await run())
            except RateLimited as error:
                if error.never:
                    raise
                await asyncio.sleep(error.retry_after)
            except Overloaded:
                await asyncio.sleep(RETRY_SECONDS)

    def _current_key(self) -> Key:
        """Returns the key as it is now. Raises InvalidApiKey where it is no longer known, or may no longer do this work here."""
        key = self.context.state[ApiKeys].current(self.context.key)
        try:
            key.require("generate")
            key.namespace_for(self.context.namespace)
        except InsufficientScope as error:
            raise InvalidApiKey(f"the key of this job has changed: {error.message}") from None
        return key

    def _may_begin(self, index: int) -> bool:
        """Whether a line may be begun. The one that all results wait for always may."""
        return index == self.next or (index < self.next + AHEAD_LINES and self._waiting_bytes < WAITING_BYTES)

    @property
    def _waiting_bytes(self) -> int:
        return sum(map(len, self.waiting.values()))

    async def _store(self, *, everything: bool = False) -> None:
        """Stores the results that no line before them holds up: whole parts, or all where many bytes wait. `everything`: also those
        that are held up, since no line is answered any more."""
        async with self.writing:
            while self.waiting:
                following = takewhile(self.waiting.__contains__, count(self.next))
                ready = list(islice(sorted(self.waiting) if everything else following, PART_LINES))
                whole = everything or len(ready) == PART_LINES or self._waiting_bytes >= WAITING_BYTES
                if not ready or not whole:
                    return
                content = "".join(self.waiting[index] for index in ready)
                try:
                    await written(partial(self._append, content), self.patience)
                except StoreUnavailable:
                    self.patience = 0.0  # which is over for the calls that wait behind this one, too
                    raise
                for index in ready:
                    del self.waiting[index]
                self.part, self.next = self.part + 1, ready[-1] + 1
                self.writing.notify_all()

    async def _append(self, content: str) -> None:
        outputs, namespace = self.context.state.store.outputs, self.context.namespace
        await outputs.append(self.output, self.part, content, namespace, self._writer())

    def _writer(self) -> Writer:
        """Returns who stores results: the key with its limits of the moment, or as it was when it has been deleted."""
        key = self.context.key
        with suppress(InvalidApiKey):
            key = self.context.state[ApiKeys].current(key)
        return Writer(key.name, key.limits.storage_bytes)


class GenerationBatch(Batch[BatchLine, GenerateAnswer]):
    """Requests of POST /v1/generate."""

    kind, activity, result_type = "generate_batch", "generating", BatchResult

    def answered(self, line: BatchLine) -> Prompt | None:
        """See Batch.answered."""
        return line.prompt if line.messages is None else chat_messages(line.messages)

    async def prepared(self, context: Context, line: BatchLine, plan: SteeringPlan) -> tuple[int, Run[GenerateAnswer]]:
        """See Batch.prepared."""
        work = await prepare_generation(context, line, plan)
        work.request, work.recorded = replace(work.request, priority=1), line.record
        return work.cost, work.run

    def rows(self, line: BatchLine) -> int:
        """See Batch.rows."""
        return line.n


class ScoreBatch(Batch[ScoreLine, ScoreAnswer]):
    """Requests of POST /v1/score."""

    kind, activity, result_type = "score_batch", "scoring", ScoreResult

    async def prepared(self, context: Context, line: ScoreLine, plan: SteeringPlan) -> tuple[int, Run[ScoreAnswer]]:
        """See Batch.prepared."""
        work = await prepare_score(context, line, plan, priority=1)
        return work.cost, work.run
