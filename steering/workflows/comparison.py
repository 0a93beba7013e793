"""Compares several arms on one prompt, with one seed and in one batch, and measures each against the baseline."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from statistics import fmean

from steering.engine.api import Engine, GenerationRequest, Prompt, SamplingParams, TokenEvent
from steering.engine.prompts import encode_steered
from steering.errors import InternalError, InvalidRequest, SteeringError
from steering.injection.readings import Reading
from steering.plan.types import UNSTEERED, SteeringPlan
from steering.schemas.comparison import AgainstBaselineAnswer, ArmFields, MeanAnswer, MetricsAnswer
from steering.spec import InterventionSpec
from steering.threads import run_in_thread
from steering.workflows import measures
from steering.workflows.generate import Answer, assemble, choices, interleaved, means, stream_events
from steering.workflows.measures import TokenMeasures
from steering.workflows.readout import read_texts


@dataclass(frozen=True, slots=True, eq=False)
class Arm:
    """One side of a comparison: a prompt and its steering. A prompt-only arm has its own prompt and no steering."""

    name: str
    prompt: Prompt
    plan: SteeringPlan = UNSTEERED


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Arms of different names, n samples each; choice j of every arm has the same seed. baseline: an arm's name.
    request: builds the request of an arm, where more belongs to it than what is named here."""

    arms: tuple[Arm, ...]
    baseline: str
    sampling: SamplingParams = field(default_factory=SamplingParams)
    n: int = 1
    readings: tuple[Reading, ...] = ()
    request: Callable[[Prompt, SamplingParams, SteeringPlan, tuple[Reading, ...]], GenerationRequest] = (
        GenerationRequest
    )


@dataclass(frozen=True, slots=True)
class ArmEvent:
    """A token of one choice of one arm."""

    arm: str
    choice: int
    event: TokenEvent


@dataclass(frozen=True, slots=True)
class ArmResult:
    """The answers and measurements of one arm; `error` instead where it failed, which ends no other arm."""

    name: str
    answers: tuple[Answer, ...] = ()
    metrics: MetricsAnswer | None = None
    against_baseline: AgainstBaselineAnswer | None = None
    error: SteeringError | None = None


def sweep_arms(intervention: InterventionSpec, strengths: Sequence[float]) -> list[ArmFields]:
    """Returns the unsteered arm "base", then one arm per strength other than 0, named by it ("-0.5", "+1")."""
    fields = intervention.model_dump(exclude_unset=True)
    arms = [ArmFields(name="base", steering=())]
    for strength in filter(None, strengths):
        item = InterventionSpec.model_validate({**fields, "strength": strength})
        arms.append(ArmFields(name=f"{strength:+g}", steering=(item,)))
    _check_names([arm.name for arm in arms])
    return arms


async def compare(engine: Engine, comparison: Comparison) -> tuple[ArmResult, ...]:
    """Returns the results of all arms, in order. Raises InvalidRequest, and the first arm's error when all failed."""
    async with aclosing(stream(engine, comparison)) as events:
        async for event in events:
            if isinstance(event, tuple):
                return event
    raise InternalError("the comparison ended without a result")


async def stream(
    engine: Engine, comparison: Comparison
) -> AsyncGenerator[ArmEvent | ArmResult | tuple[ArmResult, ...], None]:
    """Yields the tokens of all arms, the result of an arm that fails, and last all results. Closing frees every row."""
    names = [arm.name for arm in comparison.arms]
    _check_names(names)
    if comparison.baseline not in names:
        raise InvalidRequest(
            f"baseline {comparison.baseline!r} is not an arm; arms: {', '.join(names)}", param="baseline"
        )
    received: dict[str, list[list[TokenEvent]]] = {name: [[] for _ in range(comparison.n)] for name in names}
    failed: dict[str, ArmResult] = {}
    async with aclosing(interleaved([_arm_events(engine, comparison, arm) for arm in comparison.arms])) as events:
        async for _, event in events:
            if isinstance(event, ArmEvent):
                received[event.arm][event.choice].append(event.event)
            else:
                failed[event.name] = event
            yield event
    if len(failed) == len(comparison.arms) and (error := failed[comparison.arms[0].name].error):
        raise error
    done = {name: tuple(map(assemble, each)) for name, each in received.items() if name not in failed}
    measured = await _measured(engine, comparison, done)
    yield tuple((measured | failed)[arm.name] for arm in comparison.arms)


def _check_names(names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidRequest(f"arm names must be unique; given twice: {', '.join(twice)}", param="arms")


async def _arm_events(engine: Engine, comparison: Comparison, arm: Arm) -> AsyncGenerator[ArmEvent | ArmResult, None]:
    """Yields the tokens of all choices of one arm. A failed choice ends its arm."""
    request = comparison.request(arm.prompt, comparison.sampling, arm.plan, comparison.readings)
    each = [stream_events(engine, one) for one in choices(request, comparison.n)]
    try:
        async with aclosing(interleaved(each)) as events:
            async for choice, event in events:
                yield ArmEvent(arm.name, choice, event)
    except SteeringError as error:
        yield ArmResult(arm.name, error=error)


async def _measured(
    engine: Engine, comparison: Comparison, done: Mapping[str, tuple[Answer, ...]]
) -> dict[str, ArmResult]:
    """Measures every arm that finished. done: its answers, by arm."""
    texts = [answer.text for answers in done.values() for answer in answers]
    scores = iter(await read_texts(engine, texts, comparison.readings))
    read = {name: [ReadAnswer(answer, next(scores)) for answer in answers] for name, answers in done.items()}
    results: dict[str, ArmResult] = {}
    for arm in comparison.arms:
        if arm.name not in done:
            continue
        baseline = None if arm.name == comparison.baseline else read.get(comparison.baseline, ())
        try:
            measured = await _measure_arm(engine, arm, read[arm.name], baseline)
            results[arm.name] = ArmResult(arm.name, done[arm.name], *measured)
        except SteeringError as error:
            results[arm.name] = ArmResult(arm.name, done[arm.name], error=error)
    return results


@dataclass(frozen=True, slots=True)
class ReadAnswer:
    """An answer, and the mean score of its text by vector as the unsteered model reads it (empty for an empty text)."""

    answer: Answer
    readout: Mapping[str, float]


async def _measure_arm(
    engine: Engine, arm: Arm, choices: Sequence[ReadAnswer], baseline: Sequence[ReadAnswer] | None
) -> tuple[MetricsAnswer, AgainstBaselineAnswer | None]:
    """Measures one answer at a time, so that the logits of one answer are held at a time. baseline: its choices of the
    same seeds; none where it failed, which leaves out all but the KL divergence; None: the arm is the baseline."""
    ids, plan = await encode_steered(engine.tokenizer, arm.prompt, arm.plan)
    measured = [await measures.measure_tokens(engine, ids, one.answer.tokens, plan) for one in choices]
    surprise = [value for one in measured if one is not None for value in one.surprise]
    left_out = sum(one is None for one in measured)
    metrics = MetricsAnswer(
        perplexity=measures.finite_exp(fmean(surprise)) if surprise else None,
        distinct_2=fmean(measures.distinct(one.answer.tokens, 2) for one in choices),
        repetition=fmean(measures.repetition(one.answer.tokens) for one in choices),
        readout=_means([one.readout for one in choices]),
        steered_readout=_means([event.readout for one in choices for event in one.answer.events]),
        warnings=[f"perplexity and KL leave out {left_out} answers that were too long to hold"] if left_out else [],
    )
    if baseline is None:
        return metrics, None
    return metrics, await run_in_thread(_against, choices, baseline, measured)


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, MeanAnswer]:
    return {name: MeanAnswer(mean=mean) for name, mean in means(rows).items()}


def _against(
    choices: Sequence[ReadAnswer], baseline: Sequence[ReadAnswer], measured: Sequence[TokenMeasures | None]
) -> AgainstBaselineAnswer:
    """Compares with the unsteered model by KL(arm || unsteered model) on the arm's own prompt, so that an arm that
    differs only by its prompt has 0; and choice by choice with the baseline's choice of the same seed."""
    pairs = list(zip(choices, baseline, strict=bool(baseline)))
    divergence = [[] if one is None else list(one.divergence) for one in measured]
    values = [value for one in divergence for value in one]
    shifts: dict[str, list[float]] = {}  # by vector, from the baseline's choice with the same noise
    for one, other in pairs:
        for name in one.readout.keys() & other.readout.keys():
            shifts.setdefault(name, []).append(one.readout[name] - other.readout[name])
    return AgainstBaselineAnswer(
        kl_mean=fmean(values) if values else None,
        kl_per_token=divergence,
        first_divergence=[measures.first_divergence(one.answer.tokens, other.answer.tokens) for one, other in pairs],
        readout_shift={name: measures.estimate(each) for name, each in shifts.items()},
        diff=[measures.word_diff(other.answer.text, one.answer.text) for one, other in pairs],
    )
