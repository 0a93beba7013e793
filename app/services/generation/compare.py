"""Compares several arms on one prompt: as one response or as a stream of events."""

import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from functools import partial

from app.http.errors import body_of, public_error
from app.http.sse import Event
from app.services.context import Context
from app.services.generation.flags import NO_FLAGS
from app.services.generation.responses import applied_steering, choice_answer, record_of, token_piece
from app.services.inputs import prompt_of, sampling_params, tokenize, with_system
from app.services.limits import check_limit, check_sampling
from steering.errors import SteeringError
from steering.schemas.base import ErrorDetail
from steering.schemas.comparison import (
    AgainstBaselineAnswer,
    ArmAnswer,
    ArmErrorAnswer,
    ArmFields,
    CompareAnswer,
    CompareRequest,
    DiffSpanAnswer,
    EstimateAnswer,
    MeanAnswer,
    MetricsAnswer,
)
from steering.schemas.steering import Record
from steering.workflows.comparison.arm_metrics import AgainstBaseline, ArmMetrics
from steering.workflows.comparison.compare import (
    Arm,
    ArmEvent,
    ArmFailure,
    ArmResult,
    Comparison,
    ComparisonResult,
    compare,
    stream,
    sweep_arms,
)

MAX_LOGIT_BYTES = 1 << 30
"""Logits of one plan that `steering.workflows.comparison.teacher_forcing` holds at most."""


@dataclass(frozen=True, slots=True, eq=False)
class PreparedComparison:
    """A comparison whose names are resolved. tokens: whether the response lists tokens."""

    context: Context
    comparison: Comparison
    tokens: bool

    def record(self, arm: Arm) -> Record:
        """Returns the record that repeats an arm's answers."""
        engine, comparison = self.context.engine, self.comparison
        prompt = engine.tokenizer.encode(arm.prompt)
        engine_name = self.context.settings.engine
        return record_of(engine, engine_name, prompt, comparison.sampling, arm.plan, comparison.n)

    @property
    def rows(self) -> int:
        """Rows of the batch that it takes at once."""
        return len(self.comparison.arms) * self.comparison.n


def check(context: Context, body: CompareRequest) -> None:
    """Raises LimitExceeded for what is beyond the operator's limits. A sweep is counted before its arms are built."""
    check_sampling(context.settings, body, body.n)
    arms = 2 if body.steering is not None else len(body.arms or body.strengths or ())
    check_limit(arms, context.settings.max_arms, "arms", "strengths" if body.strengths is not None else "arms")


async def prepare(context: Context, body: CompareRequest) -> PreparedComparison:
    """Resolves the request. Everything that can be refused is refused here, before any device work."""
    check(context, body)
    arms = _arms(body)
    check_limit(len(arms), context.settings.max_arms, "arms", "arms")
    readings = await context.readings(body.readout)
    prompt = prompt_of(body, context.settings)
    resolved: list[Arm] = []
    max_tokens = body.max_tokens
    for arm in arms:
        given = with_system(prompt, arm.system)
        one = await tokenize(context.engine, given, body.max_tokens, await context.plan(arm.steering))
        max_tokens = one.max_tokens if max_tokens is None else min(max_tokens, one.max_tokens)
        resolved.append(Arm(arm.name, one.token_ids, one.plan))
    assert max_tokens is not None
    context.charge_tokens(sum(len(arm.prompt) + body.n * max_tokens for arm in resolved))
    sampling = sampling_params(body, max_tokens)
    context.admission.reserve(_logit_bytes(context, resolved, body.n, max_tokens))
    baseline = body.baseline if body.baseline is not None else arms[0].name
    build = partial(context.request, readings=readings)
    comparison = Comparison(tuple(resolved), baseline, sampling, body.n, readings, build)
    return PreparedComparison(context, comparison, body.lists_tokens)


def _logit_bytes(context: Context, arms: Sequence[Arm], n: int, max_tokens: int) -> int:
    """Returns the memory of the KL divergence: logits of one arm under two plans, in float32 and then in float64."""
    longest = max(len(arm.prompt) for arm in arms) + max_tokens
    one_plan = min(n * longest * context.engine.info.vocab_size * 4, MAX_LOGIT_BYTES)
    return 2 * one_plan + 2 * one_plan


def _arms(body: CompareRequest) -> Sequence[ArmFields]:
    """Returns the arms given, or those that the short forms stand for."""
    if body.arms is not None:
        return body.arms
    if body.strengths is not None and body.intervention is not None:
        swept = sweep_arms(body.intervention, body.strengths)
        return [ArmFields(name=arm.name, steering=arm.steering.interventions) for arm in swept]
    return [ArmFields(name="base", steering=()), ArmFields(name="steered", steering=body.steering)]


async def run(work: PreparedComparison) -> ComparisonResult:
    """Returns the comparison when all arms have ended."""
    return await compare(work.context.engine, work.comparison)


async def events(work: PreparedComparison) -> AsyncGenerator[Event, None]:
    """Yields `token` events that name their arm, an `error` event for each failed arm, then `done`."""
    tokenizer = work.context.engine.tokenizer
    async with aclosing(stream(work.context.engine, work.comparison)) as results:
        async for one in results:
            if isinstance(one, ArmEvent):
                if one.event.token_id >= 0 or one.event.text:
                    yield Event(token_piece(one.event, one.choice, tokenizer, one.arm), "token")
            elif isinstance(one, ArmFailure):
                failure = ArmErrorAnswer(arm=one.arm, error=_error_detail(one.error))
                yield Event(failure.model_dump(mode="json"), "error")
            else:
                yield Event(answer(work, one), "done")


def answer(work: PreparedComparison, result: ComparisonResult) -> CompareAnswer:
    """Builds the response, which is also the data of the `done` event."""
    return CompareAnswer(
        id=f"cmp-{secrets.token_hex(12)}",
        model=work.context.engine.info.name,
        seed=result.seed,
        baseline=result.baseline,
        arms=[_arm_answer(work, arm, one) for arm, one in zip(work.comparison.arms, result.arms, strict=True)],
    )


def _arm_answer(work: PreparedComparison, arm: Arm, result: ArmResult) -> ArmAnswer:
    tokenizer = work.context.engine.tokenizer
    return ArmAnswer(
        name=result.name,
        choices=[
            choice_answer(i, one, tokenizer, tokens=work.tokens, flags=NO_FLAGS.raised(one))
            for i, one in enumerate(result.answers)
        ],
        steering=applied_steering(arm.plan, [one.finish.steering for one in result.answers], work.record(arm)),
        metrics=None if result.metrics is None else _metrics(result.metrics),
        against_baseline=None if result.against_baseline is None else _against(result.against_baseline),
        error=None if result.error is None else _error_detail(result.error),
    )


def _metrics(metrics: ArmMetrics) -> MetricsAnswer:
    return MetricsAnswer(
        perplexity=metrics.perplexity,
        distinct_2=metrics.distinct_2,
        repetition=metrics.repetition,
        readout={name: MeanAnswer(mean=mean) for name, mean in metrics.readout.items()},
        steered_readout={name: MeanAnswer(mean=mean) for name, mean in metrics.steered_readout.items()},
        warnings=list(metrics.warnings),
    )


def _against(against: AgainstBaseline) -> AgainstBaselineAnswer:
    shifts = against.readout_shift.items()
    return AgainstBaselineAnswer(
        kl_mean=against.kl_mean,
        kl_per_token=[list(one) for one in against.kl_per_token],
        first_divergence=list(against.first_divergence),
        readout_shift={name: EstimateAnswer(mean=one.mean, interval=one.interval) for name, one in shifts},
        diff=[[DiffSpanAnswer(**asdict(span)) for span in spans] for spans in against.diff],
    )


def _error_detail(error: SteeringError) -> ErrorDetail:
    return ErrorDetail.model_validate(body_of(public_error(error))["error"])
