"""Compares several arms on one prompt, with one seed and in one batch."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from steering.engine.api import Engine, GenerationRequest, Prompt, SamplingParams, TokenEvent
from steering.engine.readings import Reading
from steering.errors import InternalError, InvalidRequest, SteeringError
from steering.plan.types import UNSTEERED, SteeringPlan
from steering.schemas.comparison import ArmFields
from steering.spec import InterventionSpec
from steering.workflows.comparison.arm_metrics import AgainstBaseline, ArmMetrics, ReadAnswer, measure_arm
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
    builds the request of an arm where more than its readings belongs to it.
    """

    arms: tuple[Arm, ...]
    baseline: str
    sampling: SamplingParams = field(default_factory=SamplingParams)
    n: int = 1
    readings: tuple[Reading, ...] = ()
    request: Callable[[Prompt, SamplingParams, SteeringPlan], GenerationRequest] | None = None


@dataclass(frozen=True, slots=True)
class ArmEvent:
    """A token of one choice of one arm."""

    arm: str
    choice: int
    event: TokenEvent


@dataclass(frozen=True, slots=True)
class ArmFailure:
    """An arm that ended early; the others go on."""

    arm: str
    error: SteeringError


@dataclass(frozen=True, slots=True)
class ArmResult:
    """The answers and measurements of one arm; `error` instead where it failed."""

    name: str
    answers: tuple[Answer, ...] = ()
    metrics: ArmMetrics | None = None
    against_baseline: AgainstBaseline | None = None
    error: SteeringError | None = None


@dataclass(frozen=True, slots=True)
class ComparisonResult:
    """Arms in the order asked."""

    seed: int
    baseline: str
    arms: tuple[ArmResult, ...]


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


async def compare(engine: Engine, comparison: Comparison) -> ComparisonResult:
    """Runs the whole comparison. Raises InvalidRequest for invalid arms, and the first arm's error when all failed."""
    async with aclosing(stream(engine, comparison)) as events:
        async for event in events:
            if isinstance(event, ComparisonResult):
                return event
    raise InternalError("the comparison ended without a result")


async def stream(
    engine: Engine, comparison: Comparison
) -> AsyncGenerator[ArmEvent | ArmFailure | ComparisonResult, None]:
    """Yields the tokens of all arms as they come, failures of single arms, and the result last. Closing it frees every row."""
    _check(comparison)
    received: dict[str, list[list[TokenEvent]]] = {
        arm.name: [[] for _ in range(comparison.n)] for arm in comparison.arms
    }
    failed: dict[str, SteeringError] = {}
    async with aclosing(interleaved([_arm_events(engine, comparison, arm) for arm in comparison.arms])) as events:
        async for _, event in events:
            if isinstance(event, ArmFailure):
                failed[event.arm] = event.error
            else:
                received[event.arm][event.choice].append(event.event)
            yield event
    if len(failed) == len(comparison.arms):
        raise failed[comparison.arms[0].name]
    done = {name: tuple(map(assemble, each)) for name, each in received.items() if name not in failed}
    yield await _result(engine, comparison, done, failed)


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


async def _arm_events(engine: Engine, comparison: Comparison, arm: Arm) -> AsyncGenerator[ArmEvent | ArmFailure, None]:
    """Yields the tokens of all choices of one arm. A failed choice ends its arm; any other exception ends everything."""
    if comparison.request is None:
        request = GenerationRequest(arm.prompt, comparison.sampling, arm.plan, comparison.readings)
    else:
        request = comparison.request(arm.prompt, comparison.sampling, arm.plan)
    each = [stream_events(engine, one) for one in choices(request, comparison.n)]
    try:
        async with aclosing(interleaved(each)) as events:
            async for choice, event in events:
                yield ArmEvent(arm.name, choice, event)
    except SteeringError as error:
        yield ArmFailure(arm.name, error)


async def _result(
    engine: Engine,
    comparison: Comparison,
    done: Mapping[str, tuple[Answer, ...]],
    failed: Mapping[str, SteeringError],
) -> ComparisonResult:
    """Measures every arm that finished."""
    texts = [answer.text for answers in done.values() for answer in answers]
    scores = iter(await read_texts(engine, texts, comparison.readings))
    read = {name: [ReadAnswer(answer, next(scores)) for answer in answers] for name, answers in done.items()}
    baseline = read.get(comparison.baseline)
    results: list[ArmResult] = []
    for arm in comparison.arms:
        if arm.name in failed:
            results.append(ArmResult(arm.name, error=failed[arm.name]))
            continue
        against = None if arm.name == comparison.baseline else baseline or ()
        try:
            measured = await measure_arm(engine, arm.prompt, arm.plan, read[arm.name], against)
            results.append(ArmResult(arm.name, done[arm.name], *measured))
        except SteeringError as error:
            results.append(ArmResult(arm.name, done[arm.name], error=error))
    return ComparisonResult(comparison.sampling.seed, comparison.baseline, tuple(results))
