"""Does a vector do what its name says, how strongly, and at what cost? The dose-response, with random controls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from steering.engine.api import Engine, Prompt, SamplingParams
from steering.errors import InvalidRequest
from steering.plan.layers import resolve_layers
from steering.quality import DosePoint, QualityCard, Recommended
from steering.spec import Layers
from steering.vectors import ConceptVector
from steering.workflows.comparison.text_metrics import Estimate
from steering.workflows.evaluation.judge import ASPECTS, Judgement, Judging, instruction_of, judge_answers
from steering.workflows.evaluation.scorers import SCORERS
from steering.workflows.evaluation.setup import (
    ReadBack,
    evaluation_prompts,
    plan_at,
    random_like,
    read_back,
    steered_strengths,
)
from steering.workflows.evaluation.statistics import (
    COHERENT,
    STUDENT_95,
    advantage,
    advised_range,
    anti_steered,
    dose_point,
    shifts,
)
from steering.workflows.evaluation.trials import (
    WRITING,
    Trial,
    neutral_divergence,
    run_trials,
    trial_answers,
    trial_steps,
)
from steering.workflows.progress import Progress, ignore_progress

STRENGTHS = (-4.0, -2.0, -1.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
PROMPTS, NEUTRAL = 12, 8


@dataclass(frozen=True, slots=True, eq=False)
class DoseResponseRequest:
    """One vector over a range of strengths at its layers.

    prompts, neutral: what is asked, and where damage is measured; None takes the package's neutral prompts. reader: the
    vector that scores the text (this one if None), read at reading_layer (where it reads best if None).
    random_directions: how many controls of equal dose each strength gets, 0 to 10. judging: who else rates the answers.
    """

    vector: ConceptVector
    prompts: tuple[Prompt, ...] | None = None
    neutral: tuple[Prompt, ...] | None = None
    strengths: tuple[float, ...] = STRENGTHS
    layers: Layers = "recommended"
    reader: ConceptVector | None = None
    reading_layer: int | None = None
    scorer: str = "projection"
    random_directions: int = 3
    sampling: SamplingParams = WRITING
    judging: Judging | None = None


@dataclass(frozen=True, slots=True)
class DoseResponse:
    """points: by strength; scores are shifts against the unsteered answer, whose own mean score is baseline_score.

    advantages: strength -> how far the concept moved along the sign beyond what one random direction in twenty reaches
    at the same dose. recommended: None where no positive strength both moved it so far and stayed coherent; `negative`
    is the same range below zero. judgement: what a judge said of the answers, where one was named.
    """

    vector: str
    layers: tuple[int, ...]
    reading_layer: int
    unit: str
    baseline_score: float
    points: tuple[DosePoint, ...]
    advantages: Mapping[float, Estimate]
    anti_steered: float | None
    recommended: Recommended | None
    negative: tuple[float, float] | None
    warnings: tuple[str, ...] = ()
    judgement: Judgement | None = None


async def dose_response(
    engine: Engine, request: DoseResponseRequest, *, progress: Progress | None = None
) -> DoseResponse:
    """Raises InvalidRequest for strengths, layers, prompts or a scorer that cannot be, VectorModelMismatch for another
    model's vector. A strength that drives the numbers out of range is left out, and a warning says so."""
    report, setup = progress or ignore_progress, _setup(engine, request)
    steered, prompts, neutral = setup.strengths, setup.prompts, setup.neutral
    table = [[await plan_at(engine.info, arm, strength, setup.layers) for strength in steered] for arm in setup.arms]
    plans = [plan for row in table for plan in row]
    work = trial_steps(len(plans), len(prompts))
    total = work + len(neutral) + (len(ASPECTS) * len(prompts) * (len(steered) + 1) if request.judging else 0)
    unsteered, rest = await run_trials(
        engine,
        prompts,
        plans,
        setup.reading,
        request.sampling,
        progress=lambda done, _, said: report(done, total, said),
    )
    rows = [rest[i : i + len(steered)] for i in range(0, len(rest), len(steered))]
    kept = [i for i in range(len(steered)) if all(row[i].broken is None for row in rows)]
    damage = await neutral_divergence(
        engine,
        neutral,
        [table[0][i] for i in kept],
        request.sampling,
        progress=lambda done, _, said: report(work + done, total, said),
    )
    by_strength = {steered[i]: [row[i] for row in rows] for i in kept}
    kl = dict(zip(by_strength, damage, strict=True))
    broken = [strength for strength in steered if strength not in by_strength]
    found = _dose_response(request, setup.layers, setup.reading, unsteered, by_strength, kl, broken)
    if request.judging is None:
        return found
    texts = {0.0: unsteered.texts, **{strength: row[0].texts for strength, row in by_strength.items()}}
    return await _judged(
        engine, request, prompts, found, texts, lambda done, of, said: report(total - of + done, total, said)
    )


async def _judged(
    engine: Engine,
    request: DoseResponseRequest,
    prompts: Sequence[Prompt],
    found: DoseResponse,
    texts: Mapping[float, Sequence[str]],
    progress: Progress,
) -> DoseResponse:
    """The same with what the judge says of the answers. texts: strength -> one answer a prompt."""
    assert request.judging is not None
    said = request.judging.instructions or [instruction_of(prompt, engine.tokenizer) for prompt in prompts]
    seed = request.sampling.seed % 2**32
    judgement = await judge_answers(request.judging, said, texts, seed=seed, progress=progress)
    return replace(found, judgement=judgement)


@dataclass(frozen=True, slots=True, eq=False)
class _Setup:
    """A request with everything looked up. arms: the vector, then the random ones."""

    reading: ReadBack
    layers: tuple[int, ...]
    prompts: tuple[Prompt, ...]
    neutral: tuple[Prompt, ...]
    strengths: list[float]
    arms: list[ConceptVector]


def _setup(engine: Engine, request: DoseResponseRequest) -> _Setup:
    vector, controls = request.vector, request.random_directions
    reading = read_back(engine, vector, request.reader, request.reading_layer, request.scorer)
    layers = resolve_layers(request.layers, vector, engine.info.layer_count)
    prompts, neutral = (
        evaluation_prompts(engine, request.prompts, PROMPTS),
        evaluation_prompts(engine, request.neutral, NEUTRAL),
    )
    strengths = steered_strengths(request.strengths)
    if not 0 <= controls <= len(STUDENT_95):
        raise InvalidRequest(
            f"random_directions must be 0 to {len(STUDENT_95)}, got {controls}", param="random_directions"
        )
    arms = [vector, *(random_like(vector, request.sampling.seed + 1 + i) for i in range(controls))]
    return _Setup(reading, layers, prompts, neutral, strengths, arms)


def answers_to_write(engine: Engine, request: DoseResponseRequest) -> int:
    """How many answers it takes. Raises at once what `dose_response` would raise before its first."""
    setup = _setup(engine, request)
    return trial_answers(len(setup.arms) * len(setup.strengths), len(setup.prompts)) + len(setup.neutral)


def _dose_response(
    request: DoseResponseRequest,
    layers: tuple[int, ...],
    reading: ReadBack,
    unsteered: Trial,
    by_strength: Mapping[float, Sequence[Trial]],
    kl: Mapping[float, float],
    broken: Sequence[float],
) -> DoseResponse:
    """by_strength: strength -> the concept's trial, then those of the random directions."""
    seed = request.sampling.seed % 2**32
    found = {s: dose_point(s, ours, unsteered, rest, kl[s], seed) for s, (ours, *rest) in by_strength.items()}
    found[0.0] = replace(dose_point(0.0, unsteered, unsteered, [], 0.0, seed), random_score=0.0)
    points = tuple(found[strength] for strength in sorted(found))
    advantages = {s: advantage(s, ours, unsteered, rest, seed) for s, (ours, *rest) in by_strength.items()}
    moved = {0.0: shifts(unsteered, unsteered)} | {s: shifts(row[0], unsteered) for s, row in by_strength.items()}
    coherent = {s: moved[s] for s in moved if found[s].perplexity_ratio <= COHERENT}
    advised, negative = (advised_range(points, advantages, sign) for sign in (1, -1))
    against = anti_steered(coherent if len(coherent) > 1 else moved)
    return DoseResponse(
        vector=request.vector.id if request.vector.version else request.vector.name,
        layers=layers,
        reading_layer=reading.layer,
        unit=SCORERS[reading.scorer].unit,
        baseline_score=fmean(unsteered.scores),
        points=points,
        advantages=advantages,
        anti_steered=against,
        recommended=None if advised is None else Recommended(layers, advised),
        negative=negative,
        warnings=_warnings(points, broken, against, advised),
    )


def _warnings(
    points: Sequence[DosePoint],
    broken: Sequence[float],
    against: float | None,
    advised: tuple[float, float] | None,
) -> tuple[str, ...]:
    said = []
    if broken:
        listed = ", ".join(f"{strength:g}" for strength in broken)
        said.append(f"left out, because activations went out of range: strength {listed}")
    if advised is None and any(point.strength > 0.0 for point in points):
        said.append(
            "no positive strength moved the concept further than random directions of the same dose while perplexity "
            f"stayed within {COHERENT:g} times that of unsteered text"
        )
    if against is not None and against > 0.25:
        said.append(f"{against:.0%} of the prompts moved against the sign of the strength")
    return tuple(said)


def with_evidence(vector: ConceptVector, response: DoseResponse) -> ConceptVector:
    """The vector with the dose-response on its card and the measured range as its recommendation, to be stored anew."""
    card = vector.quality or QualityCard(pairs=0, holdout=0, layers={})
    card = replace(
        card,
        dose_response=response.points,
        anti_steered=response.anti_steered,
        warnings=tuple(dict.fromkeys((*card.warnings, *response.warnings))),
    )
    measured = {"vector": response.vector, "layers": list(response.layers), "reading_layer": response.reading_layer}
    return replace(
        vector,
        quality=card,
        recommended=response.recommended or vector.recommended,
        provenance={**vector.provenance, "dose_response": measured},
    )
