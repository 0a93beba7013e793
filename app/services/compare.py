"""One question, several arms: the comparison made ready, the plain answer, and the same as a stream of events."""

import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass

from app.http.dependencies import plan_of, readings_of
from app.http.errors import body_of, hidden
from app.http.sse import Event
from app.services.inputs import check_limit, prompt_of, sampling_of, shows_tokens, tokenized, with_system
from app.services.records import record_of
from app.services.responses import applied_steering, choice_answer, token_piece
from app.state import AppState
from steering.engine.api import Engine
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
from steering.schemas.replay import Record
from steering.workflows.comparison.arm_metrics import AgainstBaseline, ArmMetrics
from steering.workflows.comparison.compare import (
    Arm,
    ArmEvent,
    ArmFailure,
    ArmResult,
    Comparison,
    ComparisonResult,
    sweep_arms,
)
from steering.workflows.comparison.compare import compare as run
from steering.workflows.comparison.compare import stream as run_stream


@dataclass(frozen=True, slots=True, eq=False)
class ReadyComparison:
    """A comparison with every name resolved."""

    engine: Engine
    comparison: Comparison
    tokens: bool
    engine_name: str

    def record(self, arm: Arm) -> Record:
        """What makes an arm's answers again."""
        prompt = self.engine.tokenizer.encode(arm.prompt)
        comparison = self.comparison
        return record_of(self.engine.info, self.engine_name, prompt, comparison.sampling, arm.plan, comparison.n)

    @property
    def rows(self) -> int:
        """Rows of the batch it takes at once."""
        return len(self.comparison.arms) * self.comparison.n


async def prepared(state: AppState, body: CompareRequest, salt: str) -> ReadyComparison:
    """Everything that can be refused is refused here, before any device work."""
    engine = state.engine
    arms = _arms(body)
    check_limit(len(arms), state.settings.max_arms, "arms", "arms")
    readings = await readings_of(state, body.readout)
    prompt = prompt_of(body, state.settings)
    ready: list[Arm] = []
    shortest = body.max_tokens
    for arm in arms:
        one = await tokenized(engine, with_system(prompt, arm.system), body.max_tokens)
        shortest = one.max_tokens if shortest is None else min(shortest, one.max_tokens)
        ready.append(Arm(arm.name, one.token_ids, await plan_of(state, arm.steering)))
    assert shortest is not None
    sampling = sampling_of(body, state.settings, shortest)
    baseline = body.baseline if body.baseline is not None else arms[0].name
    comparison = Comparison(tuple(ready), baseline, sampling, body.n, readings, salt)
    return ReadyComparison(engine, comparison, shows_tokens(body), state.settings.engine)


def _arms(body: CompareRequest) -> Sequence[ArmFields]:
    """The arms as asked, or those that the short forms stand for."""
    if body.arms is not None:
        return body.arms
    if body.strengths is not None and body.intervention is not None:
        swept = sweep_arms(body.intervention, body.strengths)
        return [ArmFields(name=arm.name, steering=arm.steering.interventions) for arm in swept]
    return [ArmFields(name="base", steering=()), ArmFields(name="steered", steering=body.steering)]


async def whole(ready: ReadyComparison) -> CompareAnswer:
    """The comparison, when all of it is done."""
    return compare_answer(ready, await run(ready.engine, ready.comparison))


async def events(ready: ReadyComparison) -> AsyncGenerator[Event, None]:
    """`token` events that name their arm, an `error` event for an arm that failed, then `done`."""
    tokenizer = ready.engine.tokenizer
    async with aclosing(run_stream(ready.engine, ready.comparison)) as told:
        async for one in told:
            if isinstance(one, ArmEvent):
                if one.event.token_id >= 0 or one.event.text:
                    yield Event(token_piece(one.event, one.choice, tokenizer, one.arm), "token")
            elif isinstance(one, ArmFailure):
                failure = ArmErrorAnswer(arm=one.arm, error=_error_detail(one.error))
                yield Event(failure.model_dump(mode="json"), "error")
            else:
                yield Event(compare_answer(ready, one), "done")


def compare_answer(ready: ReadyComparison, result: ComparisonResult) -> CompareAnswer:
    """A finished comparison in the words of the wire."""
    return CompareAnswer(
        id=f"cmp-{secrets.token_hex(12)}",
        model=ready.engine.info.name,
        seed=result.seed,
        baseline=result.baseline,
        arms=[_arm_answer(ready, arm, one) for arm, one in zip(ready.comparison.arms, result.arms, strict=True)],
    )


def _arm_answer(ready: ReadyComparison, arm: Arm, result: ArmResult) -> ArmAnswer:
    tokenizer = ready.engine.tokenizer
    return ArmAnswer(
        name=result.name,
        choices=[choice_answer(i, one, tokenizer, tokens=ready.tokens) for i, one in enumerate(result.answers)],
        steering=applied_steering(arm.plan, [one.finish.steering for one in result.answers], ready.record(arm)),
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
    return ErrorDetail.model_validate(body_of(hidden(error))["error"])
