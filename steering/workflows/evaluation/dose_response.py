"""Measures the dose-response of a vector: how far it moves the concept at each strength, at what cost, against chance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from steering.engine.api import Engine, Prompt
from steering.errors import InvalidRequest
from steering.quality import COHERENT, DosePoint, Estimate, Recommended
from steering.spec import Layers
from steering.workflows.evaluation.judge import ASPECTS, Judgement, Judging, instruction_of, judge_answers
from steering.workflows.evaluation.scorers import SCORERS
from steering.workflows.evaluation.setup import Setup, StrengthsRequest, evaluation_prompts, plan_at, resolved
from steering.workflows.evaluation.statistics import advantage, anti_steered, dose_point, holds, measured_ranges, shifts
from steering.workflows.evaluation.trials import Trial, neutral_divergence, run_trials, trial_answers
from steering.workflows.progress import Progress, ignore_progress, progress_of_part

STRENGTHS = (-4.0, -2.0, -1.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
PROMPTS, NEUTRAL = 16, 8
MAX_CONTROLS = 32


@dataclass(frozen=True, slots=True, eq=False)
class DoseResponseRequest(StrengthsRequest):
    """One vector over a range of strengths at its layers.

    neutral: where side effects are measured; None takes the package's neutral prompts. random_directions: controls of equal
    dose at each strength, 0 to MAX_CONTROLS. judging: an additional judge.
    """

    strengths: tuple[float, ...] = STRENGTHS
    layers: Layers = "recommended"
    neutral: tuple[Prompt, ...] | None = None
    random_directions: int = 8
    judging: Judging | None = None


@dataclass(frozen=True, slots=True)
class DoseResponse:
    """points: by strength; scores are shifts against the unsteered answer, whose own mean score is baseline_score.

    advantages: strength -> how far the concept moved along the sign beyond what one random direction in twenty reaches at
    the same dose. recommended: the strengths that hold with their intervals (see `holds`), None above or below zero where
    none does. judgement: the ratings of a judge, where one was named.
    """

    vector: str
    layers: tuple[int, ...]
    reading_layer: int
    unit: str
    baseline_score: float
    points: tuple[DosePoint, ...]
    advantages: Mapping[float, Estimate]
    anti_steered: float | None
    recommended: Recommended
    warnings: tuple[str, ...] = ()
    judgement: Judgement | None = None


async def dose_response(
    engine: Engine, request: DoseResponseRequest, *, progress: Progress = ignore_progress
) -> DoseResponse:
    """Runs the evaluation. A strength that makes activations non-finite is left out, and a warning says so.

    Raises InvalidRequest for invalid strengths, layers, prompts or scorer, VectorModelMismatch for another model's vector.
    """
    setup, neutral = _setup(engine, request)
    steered, prompts, sampling = setup.strengths, setup.prompts, request.sampling
    plans = [
        await plan_at(engine.info, arm, strength, setup.layers, request.guard)
        for arm in setup.arms
        for strength in steered
    ]
    work = 2 * trial_answers(len(plans), len(prompts))
    total = work + len(neutral) + (len(ASPECTS) * len(prompts) * (len(steered) + 1) if request.judging else 0)
    running = progress_of_part(progress, 0, total)
    unsteered, trials = await run_trials(engine, prompts, plans, setup.reading, sampling, progress=running)
    # trials are in the order of the plans: those of the vector by strength, then those of each control by strength
    rows = {strength: trials[i :: len(steered)] for i, strength in enumerate(steered)}
    by_strength = {strength: row for strength, row in rows.items() if all(trial.broken is None for trial in row)}
    kept = [plans[i] for i, strength in enumerate(steered) if strength in by_strength]
    damage = await neutral_divergence(engine, neutral, kept, sampling, progress=progress_of_part(progress, work, total))
    kl = dict(zip(by_strength, damage, strict=True))
    broken = [strength for strength in steered if strength not in by_strength]
    found = _dose_response(request, setup, unsteered, by_strength, kl, broken)
    if request.judging is None:
        return found
    texts = {0.0: unsteered.texts, **{strength: row[0].texts for strength, row in by_strength.items()}}
    instructions = request.judging.instructions or [instruction_of(prompt, engine.tokenizer) for prompt in prompts]
    rating = progress_of_part(progress, total - len(ASPECTS) * len(prompts) * len(texts), total)
    judgement = await judge_answers(request.judging, instructions, texts, progress=rating)
    return replace(found, judgement=judgement)


def _setup(engine: Engine, request: DoseResponseRequest) -> tuple[Setup, tuple[Prompt, ...]]:
    """Returns the resolved request, and its neutral prompts."""
    controls = request.random_directions
    if not 0 <= controls <= MAX_CONTROLS:
        raise InvalidRequest(
            f"random_directions must be 0 to {MAX_CONTROLS}, got {controls}", param="random_directions"
        )
    setup = resolved(engine, request, PROMPTS, lambda _layers: controls)
    return setup, evaluation_prompts(engine, request.neutral, NEUTRAL)


def answers_to_write(engine: Engine, request: DoseResponseRequest) -> int:
    """Returns how many answers it generates. Raises what `dose_response` raises before generating the first."""
    setup, neutral = _setup(engine, request)
    return trial_answers(len(setup.arms) * len(setup.strengths), len(setup.prompts)) + len(neutral)


def _dose_response(
    request: DoseResponseRequest,
    setup: Setup,
    unsteered: Trial,
    by_strength: Mapping[float, Sequence[Trial]],
    kl: Mapping[float, float],
    broken: Sequence[float],
) -> DoseResponse:
    """by_strength: strength -> the vector's trial, then those of its random controls."""
    found = {s: dose_point(s, ours, unsteered, rest, kl[s]) for s, (ours, *rest) in by_strength.items()}
    found[0.0] = replace(dose_point(0.0, unsteered, unsteered, [], 0.0), random_score=0.0)
    points = tuple(found[strength] for strength in sorted(found))
    advantages = {s: advantage(s, ours, unsteered, rest) for s, (ours, *rest) in by_strength.items()}
    moved = {0.0: shifts(unsteered, unsteered)} | {s: shifts(row[0], unsteered) for s, row in by_strength.items()}
    coherent = {s: moved[s] for s in moved if found[s].perplexity_ratio <= COHERENT}
    sound = {s: holds(one.interval, found[s].perplexity_interval) for s, one in advantages.items()}
    recommended = measured_ranges(setup.layers, sound)
    against = anti_steered(coherent if len(coherent) > 1 else moved)
    return DoseResponse(
        vector=request.vector.id if request.vector.version else request.vector.name,
        layers=setup.layers,
        reading_layer=setup.reading.layer,
        unit=SCORERS[setup.reading.scorer].unit,
        baseline_score=fmean(unsteered.scores),
        points=points,
        advantages=advantages,
        anti_steered=against,
        recommended=recommended,
        warnings=_warnings(points, broken, against, recommended),
    )


def _warnings(
    points: Sequence[DosePoint], broken: Sequence[float], against: float | None, recommended: Recommended
) -> tuple[str, ...]:
    warnings = []
    if broken:
        listed = ", ".join(f"{strength:g}" for strength in broken)
        warnings.append(f"left out, because activations became non-finite: strength {listed}")
    for sign, name, found in ((1.0, "positive", recommended.strength), (-1.0, "negative", recommended.negative)):
        if found is None and any(point.strength * sign > 0.0 for point in points):
            warnings.append(
                f"does not steer at {name} strengths: none moved the concept beyond chance while perplexity stayed within "
                f"{COHERENT:g} times that of unsteered text, each with its 95 % interval"
            )
    if against is not None and against > 0.25:
        warnings.append(f"{against:.0%} of the prompts moved against the sign of the strength")
    return tuple(warnings)
