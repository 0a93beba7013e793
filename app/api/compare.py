"""POST /v1/compare: answers a prompt with several arms, as one response or as a stream of events."""

import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial

from fastapi import APIRouter
from starlette.responses import Response

from app.api.context import AdmittedDep, Context
from app.api.generate import (
    STREAMED,
    applied_steering,
    choice_answers,
    listed_bytes,
    phases_of,
    record_of,
    respond,
    token_piece,
)
from app.core.admission import check_limit
from app.core.answers import Event, event_in_thread
from app.core.errors import error_detail
from app.core.requests import ApiRoute
from app.core.telemetry import TokenClock
from steering.engine.api import Prompt
from steering.errors import InvalidRequest
from steering.pairs import ChatMessage
from steering.schemas.comparison import ArmAnswer, ArmErrorAnswer, ArmFields, CompareAnswer, CompareRequest
from steering.workflows import comparison as workflow
from steering.workflows.comparison import ArmEvent, ArmResult
from steering.workflows.measures import LOGITS_BOUND

router = APIRouter(route_class=ApiRoute, tags=["generation"])


@router.post("/v1/compare", response_model=CompareAnswer, **STREAMED)
async def compare(body: CompareRequest, context: AdmittedDep) -> Response:
    """Answers a prompt with several arms: the text and metrics of each, and the differences from the baseline."""
    work = await _prepare(context, body)
    return await respond(context, work.rows, work.cost, work.run, work.events() if body.stream else None)


@dataclass(slots=True, eq=False)
class Comparison:
    """A comparison whose names are resolved. tokens: whether the response lists the tokens of each answer."""

    context: Context
    work: workflow.Comparison
    tokens: bool

    @property
    def rows(self) -> int:
        """Rows of the batch that it takes at once."""
        return len(self.work.arms) * self.work.n

    @property
    def cost(self) -> int:
        """The tokens that count against the limit of the key: the answers, and what is read again to measure each of them."""
        return sum(
            len(arm.prompt) + self.work.n * (arm.sampling.max_tokens + workflow.tokens_read(arm))
            for arm in self.work.arms.values()
        )

    async def run(self) -> Callable[[], CompareAnswer]:
        """Returns what builds the response, in a thread, when the last answer has ended."""
        return partial(self._answer, await workflow.compare(self.context.engine, self.work))

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yields `token` events that name their arm, an `error` event for each failed arm, then `done`."""
        engine, clock = self.context.engine, TokenClock(self.context.state.metrics)
        phases = {name: phases_of(arm.plan, engine.tokenizer) for name, arm in self.work.arms.items()}
        async with aclosing(workflow.stream(engine, self.work)) as results:
            async for one in results:
                if isinstance(one, ArmEvent):
                    if one.event.token_id >= 0:
                        clock.observe((one.arm, one.choice))
                    if one.event.token_id >= 0 or one.event.text:
                        phase = phases[one.arm](one.choice, one.event)
                        yield Event(token_piece(one.event, one.choice, engine.tokenizer, one.arm, phase=phase), "token")
                elif isinstance(one, ArmResult):
                    assert one.error is not None, "only an arm that failed comes before the others"
                    failure = ArmErrorAnswer(arm=one.name, error=error_detail(one.error))
                    yield Event(failure.model_dump(mode="json"), "error")
                else:
                    yield await event_in_thread(partial(self._answer, one), "done")

    def _answer(self, results: Sequence[ArmResult]) -> CompareAnswer:
        return CompareAnswer(
            id=f"cmp-{secrets.token_hex(12)}",
            model=self.context.engine.info.name,
            seed=self.work.arms[self.work.baseline].sampling.seed,
            baseline=self.work.baseline,
            arms=list(map(self._arm, results)),
        )

    def _arm(self, result: ArmResult) -> ArmAnswer:
        arm = self.work.arms[result.name]
        record = record_of(self.context, arm.prompt, arm.sampling, arm.plan, self.work.n)
        reports = [one.finish.steering for one in result.answers]
        self.context.state.metrics.observe_dose(reports)
        return ArmAnswer(
            name=result.name,
            choices=choice_answers(result.answers, self.context.engine.tokenizer, arm.plan, tokens=self.tokens),
            steering=applied_steering(arm.plan, reports, record),
            metrics=result.metrics,
            against_baseline=result.against_baseline,
            error=None if result.error is None else error_detail(result.error),
        )


async def _prepare(context: Context, body: CompareRequest) -> Comparison:
    """Resolves the request. Everything that can be refused is refused here, before any device work."""
    settings = context.settings
    context.check_sampling(body, body.n)
    if body.strengths is not None:  # a sweep is counted before its arms are built
        check_limit(len(body.strengths), settings.max_arms, "arms", "strengths")
    fields = _arms(body)
    check_limit(len(fields), settings.max_arms, "arms", "arms")
    workflow.check_names([arm.name for arm in fields])
    prompt = context.prompt_of(body)
    readings = await context.readings(body.readout)
    requests = []
    for arm in fields:
        given = _with_system(prompt, arm.system)
        requests.append(await context.request(given, body, await context.plan(arm.steering, given), readings))
    # with one seed, where each request has drawn its own, and a length that every prompt leaves room for
    max_tokens = min(request.sampling.max_tokens for request in requests)
    sampling = replace(requests[0].sampling, max_tokens=max_tokens)
    arms = {arm.name: replace(request, sampling=sampling) for arm, request in zip(fields, requests, strict=True)}
    # the KL divergence: logits of one answer under two plans, in pieces and then as one tensor
    logits = min((max_tokens + 1) * context.engine.info.vocab_size, LOGITS_BOUND) * 4
    listed = sum(listed_bytes(arm, body.n) for arm in arms.values()) if body.lists_tokens else 0
    context.admission.reserve(2 * 2 * logits + listed)
    work = workflow.Comparison(arms, body.baseline if body.baseline is not None else fields[0].name, body.n)
    return Comparison(context, work, body.lists_tokens)


def _with_system(prompt: Prompt, system: str | None) -> Prompt:
    """Returns the conversation with another system message. Raises InvalidRequest for a prompt that is not one."""
    if system is None:
        return prompt
    messages = [part for part in prompt if isinstance(part, ChatMessage)]
    if len(messages) != len(prompt):
        raise InvalidRequest("'system' needs 'messages'; a plain prompt has no system message", param="arms")
    return (ChatMessage("system", system), *(one for one in messages if one.role != "system"))


def _arms(body: CompareRequest) -> Sequence[ArmFields]:
    if body.arms is not None:
        return body.arms
    if body.strengths is not None and body.intervention is not None:
        return workflow.sweep_arms(body.intervention, body.strengths)
    return [ArmFields(name="base", steering=()), ArmFields(name="steered", steering=body.steering)]
