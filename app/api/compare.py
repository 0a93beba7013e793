"""POST /v1/compare: answers a prompt with several arms, as one response or as a stream of events."""

import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from fastapi import APIRouter
from starlette.responses import Response

from app.api.context import AdmittedDep, Context
from app.api.generate import NO_FLAGS, STREAM, TEXT, applied_steering, choice_answer, record_of, token_piece
from app.api.prompts import check_sampling, prompt_of, sampling_params, tokenize, with_system
from app.core.admission import check_limit
from app.core.answers import ALTERNATIVE_BYTES, event_in_thread, json_in_thread
from app.core.errors import error_detail
from app.core.events import Event, event_stream
from app.core.requests import ApiRoute
from steering.schemas.comparison import ArmAnswer, ArmErrorAnswer, ArmFields, CompareAnswer, CompareRequest
from steering.workflows import comparison as workflow
from steering.workflows.comparison import Arm, ArmEvent, ArmResult, Comparison, sweep_arms
from steering.workflows.measures import LOGITS_BOUND

router = APIRouter(route_class=ApiRoute, tags=["generation"])


@router.post("/v1/compare", response_model=CompareAnswer, **TEXT, **STREAM)
async def compare(body: CompareRequest, context: AdmittedDep) -> Response:
    """Answers a prompt with several arms: the text and metrics of each, and the differences from the baseline."""
    work = await _prepare(context, body)
    context.admit(work.rows, work.cost)
    if body.stream:
        return await event_stream(context.state, _events(work))
    return await _response(work)


@dataclass(frozen=True, slots=True, eq=False)
class PreparedComparison:
    """A comparison whose names are resolved.

    tokens: whether the response lists the tokens of each answer.
    """

    context: Context
    comparison: Comparison
    tokens: bool

    @property
    def rows(self) -> int:
        """Rows of the batch that it takes at once."""
        return len(self.comparison.arms) * self.comparison.n

    @property
    def cost(self) -> int:
        """The tokens that count against the limit of the key: the prompts, and all that may be generated."""
        generated = self.rows * self.comparison.sampling.max_tokens
        return sum(len(arm.prompt) for arm in self.comparison.arms) + generated


async def _prepare(context: Context, body: CompareRequest) -> PreparedComparison:
    """Resolves the request. Everything that can be refused is refused here, before any device work."""
    settings = context.settings
    check_sampling(settings, body, body.n)
    if body.strengths is not None:  # a sweep is counted before its arms are built
        check_limit(len(body.strengths), settings.max_arms, "arms", "strengths")
    arms = _arms(body)
    check_limit(len(arms), settings.max_arms, "arms", "arms")
    prompt = prompt_of(body, settings)
    readings = await context.readings(body.readout)
    resolved: list[Arm] = []
    max_tokens = body.max_tokens
    for arm in arms:
        given = with_system(prompt, arm.system)
        one = await tokenize(context.engine, given, body.max_tokens, await context.plan(arm.steering))
        max_tokens = one.max_tokens if max_tokens is None else min(max_tokens, one.max_tokens)
        resolved.append(Arm(arm.name, one.token_ids, one.plan))
    assert max_tokens is not None
    sampling = sampling_params(body, max_tokens)
    listed = (len(arms) * body.n * max_tokens) * (1 + (body.top_logprobs or 0) + len(body.readout))
    context.admission.reserve(_logit_bytes(context, max_tokens) + listed * ALTERNATIVE_BYTES * body.lists_tokens)
    baseline = body.baseline if body.baseline is not None else arms[0].name
    comparison = Comparison(tuple(resolved), baseline, sampling, body.n, readings, context.request)
    return PreparedComparison(context, comparison, body.lists_tokens)


def _logit_bytes(context: Context, max_tokens: int) -> int:
    """Returns the memory of the KL divergence: logits of one answer under two plans, in pieces and then as one tensor."""
    one_plan = min((max_tokens + 1) * context.engine.info.vocab_size, LOGITS_BOUND) * 4
    return 2 * 2 * one_plan


def _arms(body: CompareRequest) -> Sequence[ArmFields]:
    """Returns the arms given, or those that the short forms stand for."""
    if body.arms is not None:
        return body.arms
    if body.strengths is not None and body.intervention is not None:
        return sweep_arms(body.intervention, body.strengths)
    return [ArmFields(name="base", steering=()), ArmFields(name="steered", steering=body.steering)]


async def _response(work: PreparedComparison) -> Response:
    """Returns the response when all arms have ended."""
    results = await workflow.compare(work.context.engine, work.comparison)
    return await json_in_thread(lambda: _answer(work, results), exclude_none=True)


async def _events(work: PreparedComparison) -> AsyncGenerator[Event, None]:
    """Yields `token` events that name their arm, an `error` event for each failed arm, then `done`."""
    tokenizer = work.context.engine.tokenizer
    async with aclosing(workflow.stream(work.context.engine, work.comparison)) as results:
        async for one in results:
            if isinstance(one, ArmEvent):
                if one.event.token_id >= 0 or one.event.text:
                    yield Event(token_piece(one.event, one.choice, tokenizer, one.arm), "token")
            elif isinstance(one, ArmResult):
                assert one.error is not None, "only an arm that failed comes before the others"
                failure = ArmErrorAnswer(arm=one.name, error=error_detail(one.error))
                yield Event(failure.model_dump(mode="json"), "error")
            else:
                yield await event_in_thread(partial(_answer, work, one), "done")


def _answer(work: PreparedComparison, results: Sequence[ArmResult]) -> CompareAnswer:
    """Builds the response, which is also the data of the `done` event. Runs in a thread."""
    comparison = work.comparison
    return CompareAnswer(
        id=f"cmp-{secrets.token_hex(12)}",
        model=work.context.engine.info.name,
        seed=comparison.sampling.seed,
        baseline=comparison.baseline,
        arms=[_arm_answer(work, arm, one) for arm, one in zip(comparison.arms, results, strict=True)],
    )


def _arm_answer(work: PreparedComparison, arm: Arm, result: ArmResult) -> ArmAnswer:
    comparison, tokenizer = work.comparison, work.context.engine.tokenizer
    record = record_of(work.context, arm.prompt, comparison.sampling, arm.plan, comparison.n)
    return ArmAnswer(
        name=result.name,
        choices=[
            choice_answer(i, one, tokenizer, tokens=work.tokens, flags=NO_FLAGS.raised(one))
            for i, one in enumerate(result.answers)
        ],
        steering=applied_steering(arm.plan, [one.finish.steering for one in result.answers], record),
        metrics=result.metrics,
        against_baseline=result.against_baseline,
        error=None if result.error is None else error_detail(result.error),
    )
