"""One question, several arms, one seed, one batch: what steering changed, token by token and in sum."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TypeAlias

from steering.engine.api import Engine, GenerationRequest, Prompt, Reading, SamplingParams, TokenEvent
from steering.errors import InternalError, InvalidRequest, SteeringError
from steering.plan.types import UNSTEERED, SteeringPlan
from steering.spec import InterventionSpec, SteeringSpec
from steering.workflows.comparison.arm_metrics import AgainstBaseline, ArmMetrics, measure_arm
from steering.workflows.generate import Answer, assemble, choices, gathered, opened

BUFFER = 256
"""Events that may wait for a slow reader before the arms wait too."""


@dataclass(frozen=True, slots=True, eq=False)
class Arm:
    """One side of a comparison: a prompt and what steers it. A prompt-only arm has its own prompt and no steering."""

    name: str
    prompt: Prompt
    plan: SteeringPlan = UNSTEERED


@dataclass(frozen=True, slots=True)
class ArmSpec:
    """An arm before its names became tensors."""

    name: str
    steering: SteeringSpec


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Arms of different names, n samples each; choice j of every arm has the same seed. baseline: an arm's name."""

    arms: tuple[Arm, ...]
    baseline: str
    sampling: SamplingParams = field(default_factory=SamplingParams)
    n: int = 1
    readings: tuple[Reading, ...] = ()
    cache_salt: str = ""


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
    """What one arm wrote and how it stands. `error` instead of answers where it failed."""

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


@dataclass(frozen=True, slots=True)
class _ArmDone:
    arm: str
    answers: tuple[Answer, ...]


Told: TypeAlias = ArmEvent | ArmFailure | _ArmDone | Exception


@dataclass(slots=True)
class _Outcomes:
    done: dict[str, tuple[Answer, ...]] = field(default_factory=dict)
    failed: dict[str, SteeringError] = field(default_factory=dict)

    def note(self, told: Told) -> None:
        match told:
            case _ArmDone():
                self.done[told.arm] = told.answers
            case ArmFailure():
                self.failed[told.arm] = told.error
            case Exception():
                raise told
            case _:
                pass


def sweep_arms(intervention: InterventionSpec, strengths: Sequence[float]) -> tuple[ArmSpec, ...]:
    """One arm a strength, named by it ("-0.5", "+1"); 0 is the arm "base" without steering, there in any case and first."""
    if not strengths:
        raise InvalidRequest("a sweep needs at least one strength", param="strengths")
    steered = (strength for strength in strengths if strength != 0.0)
    arms = [ArmSpec("base", SteeringSpec())]
    for strength in steered:
        one = InterventionSpec.model_validate({**intervention.model_dump(exclude_unset=True), "strength": strength})
        arms.append(ArmSpec(f"{strength:+g}", SteeringSpec(interventions=(one,))))
    _check_names([arm.name for arm in arms])
    return tuple(arms)


async def compare(engine: Engine, comparison: Comparison) -> ComparisonResult:
    """The whole comparison. Raises InvalidRequest for arms that cannot be, and the first arm's error when all failed."""
    async with aclosing(stream(engine, comparison)) as told:
        async for one in told:
            if isinstance(one, ComparisonResult):
                return one
    raise InternalError("the comparison ended without a result")


async def stream(
    engine: Engine, comparison: Comparison
) -> AsyncGenerator[ArmEvent | ArmFailure | ComparisonResult, None]:
    """Tokens of all arms as they come, failures of single arms, and the result last. Closing it frees every row."""
    _check(comparison)
    queue: asyncio.Queue[Told] = asyncio.Queue(maxsize=BUFFER)
    outcomes = _Outcomes()
    tasks = [asyncio.create_task(_run(engine, comparison, arm, queue)) for arm in comparison.arms]
    try:
        while len(outcomes.done) + len(outcomes.failed) < len(tasks):
            told = await queue.get()
            outcomes.note(told)
            if isinstance(told, ArmEvent | ArmFailure):
                yield told
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if not outcomes.done:
        raise outcomes.failed[comparison.arms[0].name]
    yield await _result(engine, comparison, outcomes)


def _check(comparison: Comparison) -> None:
    names = [arm.name for arm in comparison.arms]
    if not names:
        raise InvalidRequest("a comparison needs at least one arm", param="arms")
    _check_names(names)
    if comparison.baseline not in names:
        raise InvalidRequest(f"baseline {comparison.baseline!r} is no arm; arms: {', '.join(names)}", param="baseline")
    if comparison.n < 1:
        raise InvalidRequest(f"n must be at least 1, got {comparison.n}", param="n")


def _check_names(names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidRequest(f"every arm needs a name of its own, given twice: {', '.join(twice)}", param="arms")


async def _run(engine: Engine, comparison: Comparison, arm: Arm, queue: asyncio.Queue[Told]) -> None:
    """All choices of one arm into the queue. A failed choice ends its arm; a defect is handed on and ends everything."""
    request = GenerationRequest(
        arm.prompt, comparison.sampling, arm.plan, comparison.readings, cache_salt=comparison.cache_salt
    )
    try:
        each = [_choice(engine, arm.name, j, one, queue) for j, one in enumerate(choices(request, comparison.n))]
        await queue.put(_ArmDone(arm.name, await gathered(each)))
    except SteeringError as error:
        await queue.put(ArmFailure(arm.name, error))
    except Exception as error:
        await queue.put(error)


async def _choice(
    engine: Engine, arm: str, choice: int, request: GenerationRequest, queue: asyncio.Queue[Told]
) -> Answer:
    events = []
    async with opened(engine, request) as answer:
        async for event in answer:
            events.append(event)
            await queue.put(ArmEvent(arm, choice, event))
    return assemble(events)


async def _result(engine: Engine, comparison: Comparison, outcomes: _Outcomes) -> ComparisonResult:
    baseline = outcomes.done.get(comparison.baseline)
    results: list[ArmResult] = []
    for arm in comparison.arms:
        if arm.name in outcomes.failed:
            results.append(ArmResult(arm.name, error=outcomes.failed[arm.name]))
            continue
        written = outcomes.done[arm.name]
        against = None if arm.name == comparison.baseline else baseline or ()
        try:
            metrics, difference = await measure_arm(
                engine, arm.prompt, arm.plan, written, against, comparison.sampling.seed
            )
            results.append(ArmResult(arm.name, written, metrics, difference))
        except SteeringError as error:
            results.append(ArmResult(arm.name, written, error=error))
    return ComparisonResult(comparison.sampling.seed, comparison.baseline, tuple(results))
