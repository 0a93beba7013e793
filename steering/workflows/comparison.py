"""Compares several arms on one prompt, with one seed and in one batch, and measures each against the baseline."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from statistics import fmean
from typing import TypeAlias

from steering.engine.api import Engine, GenerationRequest, TokenEvent
from steering.engine.prompts import encode_steered
from steering.errors import InternalError, InvalidRequest, SteeringError
from steering.schemas.comparison import AgainstBaselineAnswer, ArmFields, MeanAnswer, MetricsAnswer
from steering.spec import InterventionSpec
from steering.threads import run_in_thread
from steering.workflows import measures
from steering.workflows.generate import Answer, assemble, choices, interleaved, means, stream_events
from steering.workflows.measures import TokenMeasures
from steering.workflows.readout import read_texts

ReadAnswer: TypeAlias = tuple[Answer, Mapping[str, float]]
"""An answer, and the mean score of its text by vector as the unsteered model reads it (empty for an empty text)."""


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Arms by name, n samples each; choice j of every arm has the same seed. arms: requests of the same sampling and readings;
    one of a prompt alone has no steering. baseline: an arm's name. Raises InvalidRequest where it is none."""

    arms: Mapping[str, GenerationRequest]
    baseline: str
    n: int = 1

    def __post_init__(self) -> None:
        if self.baseline not in self.arms:
            raise InvalidRequest(
                f"baseline {self.baseline!r} is not an arm; arms: {', '.join(self.arms)}", param="baseline"
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
    return arms


async def compare(engine: Engine, comparison: Comparison) -> tuple[ArmResult, ...]:
    """Returns the results of all arms, in order. Raises the first arm's error when all failed."""
    async with aclosing(stream(engine, comparison)) as events:
        async for event in events:
            if isinstance(event, tuple):
                return event
    raise InternalError("the comparison ended without a result")


async def stream(
    engine: Engine, comparison: Comparison
) -> AsyncGenerator[ArmEvent | ArmResult | tuple[ArmResult, ...], None]:
    """Yields the tokens of all arms, the result of an arm that fails, and last all results. Closing frees every row."""
    arms = comparison.arms
    received: dict[str, list[list[TokenEvent]]] = {name: [[] for _ in range(comparison.n)] for name in arms}
    failed: dict[str, ArmResult] = {}
    running = [_arm_events(engine, name, choices(request, comparison.n)) for name, request in arms.items()]
    async with aclosing(interleaved(running)) as events:
        async for _, event in events:
            if isinstance(event, ArmEvent):
                received[event.arm][event.choice].append(event.event)
            else:
                failed[event.name] = event
            yield event
    if len(failed) == len(arms) and (error := failed[next(iter(arms))].error):
        raise error
    done = {name: tuple(map(assemble, each)) for name, each in received.items() if name not in failed}
    measured = await _measured(engine, comparison, done)
    yield tuple((measured | failed)[name] for name in arms)


def tokens_read(arm: GenerationRequest) -> int:
    """Returns how many tokens are read at most to measure an answer: with its prompt for perplexity and KL divergence, without for the
    readings."""
    passes, most = 1 if arm.plan.empty else 2, arm.sampling.max_tokens
    return passes * (len(arm.prompt) + most) + (most if arm.readings else 0)


def check_names(names: Sequence[str]) -> None:
    """Raises InvalidRequest where two arms have the same name."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidRequest(f"arm names must be unique; given twice: {', '.join(twice)}", param="arms")


async def _arm_events(
    engine: Engine, name: str, requests: Sequence[GenerationRequest]
) -> AsyncGenerator[ArmEvent | ArmResult, None]:
    """Yields the tokens of all choices of one arm. A failed choice ends its arm."""
    try:
        async with aclosing(interleaved([stream_events(engine, one) for one in requests])) as events:
            async for choice, event in events:
                yield ArmEvent(name, choice, event)
    except SteeringError as error:
        yield ArmResult(name, error=error)


async def _measured(
    engine: Engine, comparison: Comparison, done: Mapping[str, tuple[Answer, ...]]
) -> dict[str, ArmResult]:
    """Measures every arm that finished. done: its answers, by arm."""
    texts = [answer.text for answers in done.values() for answer in answers]
    scores = iter(await read_texts(engine, texts, comparison.arms[comparison.baseline].readings))
    read = {name: [(answer, next(scores)) for answer in answers] for name, answers in done.items()}
    results: dict[str, ArmResult] = {}
    for name, answers in done.items():
        baseline = None if name == comparison.baseline else read.get(comparison.baseline, ())
        try:
            measured = await _measure_arm(engine, comparison.arms[name], read[name], baseline)
            results[name] = ArmResult(name, answers, *measured)
        except SteeringError as error:
            results[name] = ArmResult(name, answers, error=error)
    return results


async def _measure_arm(
    engine: Engine, arm: GenerationRequest, choices: Sequence[ReadAnswer], baseline: Sequence[ReadAnswer] | None
) -> tuple[MetricsAnswer, AgainstBaselineAnswer | None]:
    """Measures one answer at a time, so that the logits of one answer are held at a time. baseline: its choices of the
    same seeds; none where it failed, which leaves out all but the KL divergence; None: the arm is the baseline."""
    ids, plan = await encode_steered(engine.tokenizer, arm.prompt, arm.plan)
    answers = [answer for answer, _ in choices]
    measured = [await measures.measure_tokens(engine, ids, one.tokens, plan) for one in answers]
    surprise = [value for one in measured if one is not None for value in one.surprise]
    left_out = sum(one is None for one in measured)
    metrics = MetricsAnswer(
        perplexity=measures.finite_exp(fmean(surprise)) if surprise else None,
        distinct_2=fmean(measures.distinct(one.tokens, 2) for one in answers),
        repetition=fmean(measures.repetition(one.tokens) for one in answers),
        readout=_means([readout for _, readout in choices]),
        steered_readout=_means([event.readout for one in answers for event in one.events]),
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
    for (_, one), (_, other) in pairs:
        for name in one.keys() & other.keys():
            shifts.setdefault(name, []).append(one[name] - other[name])
    return AgainstBaselineAnswer(
        kl_mean=fmean(values) if values else None,
        kl_per_token=divergence,
        first_divergence=[measures.first_divergence(one.tokens, other.tokens) for (one, _), (other, _) in pairs],
        readout_shift={name: measures.estimate(each) for name, each in shifts.items()},
        diff=[measures.word_diff(other.text, one.text) for (one, _), (other, _) in pairs],
    )
