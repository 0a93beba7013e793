"""Compares several arms on one prompt, with one seed and in one batch."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from steering.engine.api import Engine, GenerationRequest, Prompt, SamplingParams, TokenEvent
from steering.errors import InternalError, InvalidRequest, SteeringError
from steering.injection.readings import Reading
from steering.plan.types import UNSTEERED, SteeringPlan
from steering.schemas.comparison import AgainstBaselineAnswer, ArmFields, MetricsAnswer
from steering.spec import InterventionSpec
from steering.workflows.comparison.arm_metrics import ReadAnswer, measure_arm
from steering.workflows.generate import Answer, assemble, choices, interleaved, stream_events
from steering.workflows.reading.readout import read_texts


@dataclass(frozen=True, slots=True, eq=False)
class Arm:
    """One side of a comparison: a prompt and its steering. A prompt-only arm has its own prompt and no steering."""

    name: str
    prompt: Prompt
    plan: SteeringPlan = UNSTEERED


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Arms of different names, n samples each; choice j of every arm has the same seed. baseline: an arm's name. request:
    builds the request of an arm, where more belongs to it than what is named here."""

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
    """Returns one arm per strength, named by it ("-0.5", "+1"). The unsteered arm "base" (strength 0) always comes first."""
    if not strengths:
        raise InvalidRequest("a sweep needs at least one strength", param="strengths")
    fields = intervention.model_dump(exclude_unset=True)
    arms = [ArmFields(name="base", steering=())]
    for strength in strengths:
        if strength != 0.0:
            one = InterventionSpec.model_validate({**fields, "strength": strength})
            arms.append(ArmFields(name=f"{strength:+g}", steering=(one,)))
    _check_names([arm.name for arm in arms])
    return arms


async def compare(engine: Engine, comparison: Comparison) -> tuple[ArmResult, ...]:
    """Returns the results of all arms, in order. Raises InvalidRequest for invalid arms, and the first arm's error when all
    failed."""
    async with aclosing(stream(engine, comparison)) as events:
        async for event in events:
            if isinstance(event, tuple):
                return event
    raise InternalError("the comparison ended without a result")


async def stream(
    engine: Engine, comparison: Comparison
) -> AsyncGenerator[ArmEvent | ArmResult | tuple[ArmResult, ...], None]:
    """Yields the tokens of all arms as they come, the result of an arm that fails, and last the results of all arms, in order.
    Closing it frees every row."""
    _check(comparison)
    received: dict[str, list[list[TokenEvent]]] = {
        arm.name: [[] for _ in range(comparison.n)] for arm in comparison.arms
    }
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


def _check(comparison: Comparison) -> None:
    names = [arm.name for arm in comparison.arms]
    if not names:
        raise InvalidRequest("a comparison needs at least one arm", param="arms")
    _check_names(names)
    if comparison.baseline not in names:
        raise InvalidRequest(
            f"baseline {comparison.baseline!r} is not an arm; arms: {', '.join(names)}", param="baseline"
        )
    if comparison.n < 1:
        raise InvalidRequest(f"n must be at least 1, got {comparison.n}", param="n")


def _check_names(names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidRequest(f"arm names must be unique; given twice: {', '.join(twice)}", param="arms")


async def _arm_events(engine: Engine, comparison: Comparison, arm: Arm) -> AsyncGenerator[ArmEvent | ArmResult, None]:
    """Yields the tokens of all choices of one arm. A failed choice ends its arm; any other exception ends everything."""
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
            measured = await measure_arm(engine, arm.prompt, arm.plan, read[arm.name], baseline)
            results[arm.name] = ArmResult(arm.name, done[arm.name], *measured)
        except SteeringError as error:
            results[arm.name] = ArmResult(arm.name, done[arm.name], error=error)
    return results
