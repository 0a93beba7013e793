"""Evaluations of a vector over many strengths: dose-responses and layer sweeps, and the evidence that they put on its card."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from math import ceil
from statistics import fmean

from steering.cards import COHERENT, DosePoint, QualityCard, Recommended
from steering.concepts.measured import ConceptMeasurement, measurement_of
from steering.engine.api import Engine, Prompt, SamplingParams
from steering.errors import InvalidRequest
from steering.lab.controls import UNGUARDED, plan_at, random_at_each_layer, random_like
from steering.lab.judge import ASPECTS, Judging, instruction_of, judge_answers
from steering.lab.trials import (
    SCORERS,
    WRITING,
    ReadBack,
    Trial,
    advantage,
    anti_steered,
    dose_point,
    evaluation_prompts,
    holds,
    measured_ranges,
    neutral_divergence,
    perplexity_ratio,
    read_back,
    run_trials,
    shifts,
    trial_answers,
)
from steering.plan.dose import DoseGuard
from steering.plan.layers import resolve_layers
from steering.schemas.evaluation import DoseResponseAnswer, LayerPointAnswer, LayerSweepAnswer
from steering.spec import Layers
from steering.vectors import ConceptVector
from steering.workflows.generate import Progress, ignore_progress, progress_of_part

DOSE_STRENGTHS = (-4.0, -2.0, -1.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
DOSE_PROMPTS, NEUTRAL = 16, 8
MAX_CONTROLS = 32
SWEEP_STRENGTHS = (1.0, 2.0, 4.0)
SWEEP_PROMPTS = 8
SWEEP_CONTROLS = 8
"""Random directions per strength, at least, over all layers together."""


@dataclass(frozen=True, slots=True, eq=False)
class StrengthsRequest:
    """What evaluations of a vector over many strengths take.

    prompts: what the model answers; None takes the package's neutral prompts. strengths: in natural scales of each layer.
    reader: the vector that scores the text (this one if None), at reading_layer (where it reads best if None).
    guard: a dose that the caller may not exceed; it refuses strengths beyond it.
    """

    vector: ConceptVector
    prompts: tuple[Prompt, ...] | None = None
    strengths: tuple[float, ...] = ()
    layers: Layers = "all"
    reader: ConceptVector | None = None
    reading_layer: int | None = None
    scorer: str = "projection"
    sampling: SamplingParams = WRITING
    guard: DoseGuard = UNGUARDED


@dataclass(frozen=True, slots=True, eq=False)
class Setup:
    """A request with names and defaults resolved. arms: the vector, then its random controls."""

    reading: ReadBack
    layers: tuple[int, ...]
    prompts: tuple[Prompt, ...]
    strengths: list[float]
    arms: list[ConceptVector]


def _resolved(
    engine: Engine,
    request: StrengthsRequest,
    prompts: int,
    controls: Callable[[int], int],
    control: Callable[[ConceptVector, int], ConceptVector] = random_like,
) -> Setup:
    """Resolves a request. prompts: how many neutral ones where none are given. controls: layers -> how many controls;
    control: makes one of them from the vector and a seed. The strengths are ascending, each once, without 0, which every
    evaluation includes.

    Raises InvalidRequest for invalid strengths, layers, prompts or scorer, VectorModelMismatch for another model's vector.
    """
    vector, seed = request.vector, request.sampling.seed
    reading = read_back(engine, vector, request.reader, request.reading_layer, request.scorer)
    layers = resolve_layers(request.layers, vector, engine.info.layer_count)
    asked = evaluation_prompts(engine, request.prompts, prompts)
    strengths = sorted({float(strength) for strength in request.strengths} - {0.0})
    if not strengths:
        raise InvalidRequest("a sweep needs at least one strength other than 0", param="strengths")
    arms = [vector, *(control(vector, seed + 1 + i) for i in range(controls(len(layers))))]
    return Setup(reading, layers, asked, strengths, arms)


@dataclass(frozen=True, slots=True, eq=False)
class DoseResponseRequest(StrengthsRequest):
    """One vector over a range of strengths at its layers.

    neutral: where side effects are measured; None takes the package's neutral prompts. random_directions: controls of equal
    dose at each strength, 0 to MAX_CONTROLS. judging: an additional judge.
    """

    strengths: tuple[float, ...] = DOSE_STRENGTHS
    layers: Layers = "recommended"
    neutral: tuple[Prompt, ...] | None = None
    random_directions: int = 8
    judging: Judging | None = None


async def dose_response(
    engine: Engine, request: DoseResponseRequest, *, progress: Progress = ignore_progress
) -> DoseResponseAnswer:
    """Runs the evaluation. A strength that makes activations non-finite is left out, and a warning says so.

    Raises InvalidRequest for invalid strengths, layers, prompts or scorer, VectorModelMismatch for another model's vector.
    """
    setup, neutral = _dose_setup(engine, request)
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
    answer = _answer(request, setup, unsteered, by_strength, kl, broken)
    if request.judging is None:
        return answer
    texts = {0.0: unsteered.texts, **{strength: row[0].texts for strength, row in by_strength.items()}}
    instructions = request.judging.instructions or [instruction_of(prompt, engine.tokenizer) for prompt in prompts]
    rating = progress_of_part(progress, total - len(ASPECTS) * len(prompts) * len(texts), total)
    judgement = await judge_answers(request.judging, instructions, texts, progress=rating)
    return answer.model_copy(update={"judgement": judgement})


def _dose_setup(engine: Engine, request: DoseResponseRequest) -> tuple[Setup, tuple[Prompt, ...]]:
    """Returns the resolved request, and its neutral prompts."""
    controls = request.random_directions
    if not 0 <= controls <= MAX_CONTROLS:
        raise InvalidRequest(
            f"random_directions must be 0 to {MAX_CONTROLS}, got {controls}", param="random_directions"
        )
    setup = _resolved(engine, request, DOSE_PROMPTS, lambda _layers: controls)
    return setup, evaluation_prompts(engine, request.neutral, NEUTRAL)


def _answer(
    request: DoseResponseRequest,
    setup: Setup,
    unsteered: Trial,
    by_strength: Mapping[float, Sequence[Trial]],
    kl: Mapping[float, float],
    broken: Sequence[float],
) -> DoseResponseAnswer:
    """by_strength: strength -> the vector's trial, then those of its random controls."""
    points = {s: dose_point(s, ours, unsteered, rest, kl[s]) for s, (ours, *rest) in by_strength.items()}
    sound = {
        s: one.advantage is not None and holds(one.advantage.interval, one.perplexity_interval)
        for s, one in points.items()
    }
    points[0.0] = replace(dose_point(0.0, unsteered, unsteered, [], 0.0), random_score=0.0)
    moved = {0.0: shifts(unsteered, unsteered)} | {s: shifts(row[0], unsteered) for s, row in by_strength.items()}
    coherent = {s: moved[s] for s in moved if points[s].perplexity_ratio <= COHERENT}
    against = anti_steered(coherent if len(coherent) > 1 else moved)
    recommended = measured_ranges(setup.layers, sound)
    return DoseResponseAnswer(
        vector=request.vector.id if request.vector.version else request.vector.name,
        layers=setup.layers,
        reading_layer=setup.reading.layer,
        unit=SCORERS[setup.reading.scorer].unit,
        baseline_score=fmean(unsteered.scores),
        points=tuple(points[strength] for strength in sorted(points)),
        anti_steered=against,
        recommended=recommended,
        warnings=_warnings(points, broken, against, recommended),
    )


def _warnings(
    strengths: Iterable[float], broken: Sequence[float], against: float | None, recommended: Recommended
) -> tuple[str, ...]:
    warnings = []
    if broken:
        listed = ", ".join(f"{strength:g}" for strength in broken)
        warnings.append(f"left out, because activations became non-finite: strength {listed}")
    for sign, name, found in ((1.0, "positive", recommended.strength), (-1.0, "negative", recommended.negative)):
        if found is None and any(strength * sign > 0.0 for strength in strengths):
            warnings.append(
                f"does not steer at {name} strengths: none moved the concept beyond chance while perplexity stayed within "
                f"{COHERENT:g} times that of unsteered text, each with its 95 % interval"
            )
    if against is not None and against > 0.25:
        warnings.append(f"{against:.0%} of the prompts moved against the sign of the strength")
    return tuple(warnings)


@dataclass(frozen=True, slots=True, eq=False)
class LayerSweepRequest(StrengthsRequest):
    """One vector at one layer at a time. strengths: all of one sign. The text is read at the same layer throughout, so that layers
    can be compared.

    A dose-response with the same prompts and seed gives the same answers at a shared layer and strength. Only chance
    differs: here it is estimated from random directions at all layers together, there from directions at that layer.
    """

    strengths: tuple[float, ...] = SWEEP_STRENGTHS


async def layer_sweep(
    engine: Engine, request: LayerSweepRequest, *, progress: Progress = ignore_progress
) -> LayerSweepAnswer:
    """Runs the sweep. A point that makes activations non-finite is left out, and a warning says so. The layer of the best point
    is recommended, with the strengths that hold there.

    Raises InvalidRequest for invalid strengths, layers, prompts or scorer, VectorModelMismatch for another model's vector.
    """
    vector, setup = request.vector, _sweep_setup(engine, request)
    places = list(product(setup.layers, setup.strengths))
    plans = [
        await plan_at(engine.info, arm, strength, (layer,), request.guard)
        for arm in setup.arms
        for layer, strength in places
    ]
    unsteered, trials = await run_trials(
        engine, setup.prompts, plans, setup.reading, request.sampling, progress=progress
    )
    ours, random = trials[: len(places)], trials[len(places) :]
    # at every layer the trials are in the order of the strengths
    controls = {one: random[i :: len(setup.strengths)] for i, one in enumerate(setup.strengths)}
    points, broken = [], []
    for (layer, strength), trial in zip(places, ours, strict=True):
        if trial.broken is None:
            points.append(_layer_point(vector, layer, strength, trial, unsteered, controls[strength]))
        else:
            broken.append(f"layer {layer} at {strength:g}")
    warnings = [f"left out, because activations became non-finite: {', '.join(broken)}"] if broken else []
    best, recommended = best_point(points), None
    if best is None:
        warnings.append(
            "does not steer at any layer: no strength moved the concept beyond chance while perplexity stayed within "
            f"{COHERENT:g} times that of unsteered text, each with its 95 % interval"
        )
    else:
        at_best = {point.strength: _holds(point) for point in points if point.layer == best.layer}
        recommended = measured_ranges((best.layer,), at_best)
    return LayerSweepAnswer(
        vector=vector.id if vector.version else vector.name,
        reading_layer=setup.reading.layer,
        points=points,
        best=best,
        recommended=recommended,
        warnings=warnings,
    )


def _sweep_setup(engine: Engine, request: LayerSweepRequest) -> Setup:
    # drawn for each layer by itself: those of a rotated vector agree from layer to layer and would count as one
    found = _resolved(
        engine, request, SWEEP_PROMPTS, lambda layers: ceil(SWEEP_CONTROLS / layers), random_at_each_layer
    )
    if found.strengths[0] < 0.0 < found.strengths[-1]:
        raise InvalidRequest(
            "a layer sweep takes strengths of one sign, so that layers can be ranked", param="strengths"
        )
    return found


def answers_to_write(engine: Engine, request: DoseResponseRequest | LayerSweepRequest) -> int:
    """Returns how many answers an evaluation generates. Raises what it raises before it generates the first."""
    if isinstance(request, DoseResponseRequest):
        setup, neutral = _dose_setup(engine, request)
        return trial_answers(len(setup.arms) * len(setup.strengths), len(setup.prompts)) + len(neutral)
    setup = _sweep_setup(engine, request)
    return trial_answers(len(setup.arms) * len(setup.layers) * len(setup.strengths), len(setup.prompts))


def _holds(point: LayerPointAnswer) -> bool:
    return holds(point.advantage.interval, point.perplexity_interval)


def best_point(points: Sequence[LayerPointAnswer]) -> LayerPointAnswer | None:
    """Returns, among the points that hold, the one whose advantage has the highest lower end; None if none holds."""
    sound = [(point.advantage.interval[0], point) for point in points if point.advantage.interval and _holds(point)]
    return max(sound, key=lambda found: found[0])[1] if sound else None


def _layer_point(
    vector: ConceptVector,
    layer: int,
    strength: float,
    trial: Trial,
    unsteered: Trial,
    controls: Sequence[Trial],
) -> LayerPointAnswer:
    """controls: of the same strength, at all layers. auroc is there because the layer that reads best need not steer best."""
    perplexity = perplexity_ratio(trial, unsteered)
    quality = vector.quality.layers.get(layer) if vector.quality else None
    return LayerPointAnswer(
        layer=layer,
        strength=strength,
        moved=advantage(strength, trial, unsteered, []),
        advantage=advantage(strength, trial, unsteered, controls),
        perplexity_ratio=perplexity.mean,
        repetition=fmean(one.repetition for one in trial.measures),
        relative_dose=fmean(one.dose for one in trial.measures),
        auroc=None if quality is None else quality.auroc,
        perplexity_interval=perplexity.interval,
    )


def with_evidence(vector: ConceptVector, response: DoseResponseAnswer) -> ConceptVector:
    """Returns the vector with the dose-response on its card and its ranges as the recommendation, which may be none."""
    card = vector.quality or QualityCard(pairs=0, holdout=0, layers={})
    warnings = tuple(dict.fromkeys((*card.warnings, *response.warnings)))
    points = tuple(
        DosePoint(**{field.name: getattr(one, field.name) for field in fields(DosePoint)}) for one in response.points
    )
    card = replace(card, dose_response=points, anti_steered=response.anti_steered, warnings=warnings)
    return _proved(vector, card, response.recommended, {"vector": response.vector}, response.reading_layer)


def _proved(
    vector: ConceptVector, card: QualityCard, recommended: Recommended, source: dict[str, str], reading_layer: int
) -> ConceptVector:
    """Returns the vector with a card and what was measured; its provenance says where that is from."""
    measured = {**source, "layers": list(recommended.layers), "reading_layer": reading_layer}
    provenance = {**vector.provenance, "dose_response": measured}
    return replace(vector, quality=card, recommended=recommended, provenance=provenance)


def with_shipped_evidence(vector: ConceptVector, concept: str) -> ConceptVector:
    """Returns a vector of a starter concept with the dose-response that ships with the package.

    Only where it is the same vector: the same model, pairs, method and position, with the measured layers; otherwise it is
    returned unchanged. The measured layers become the recommended ones: several layers read equally well, and rounding
    decides between them. Where too few prompts were measured to tell, the card's own recommendation stays.
    """
    found = measurement_of(concept, vector.model_fingerprint)
    if found is None or vector.quality is None or not _same(vector, found):
        return vector
    warnings = (*vector.quality.warnings, *(() if found.claims else (found.summary,)))
    card = replace(vector.quality, warnings=warnings)
    if not found.claims and found.moves_on_average:
        return replace(vector, quality=card)
    card = replace(card, dose_response=found.points, anti_steered=found.anti_steered)
    recommended = Recommended(found.layers, found.strength, found.negative, basis="measured")
    return _proved(vector, card, recommended, {"shipped": concept}, found.reading_layer)


def _same(vector: ConceptVector, found: ConceptMeasurement) -> bool:
    """Whether the measurement is of this vector."""
    made = vector.provenance
    origin = made.get("dataset"), made.get("method"), str(made.get("position"))
    return origin == (found.dataset, found.method, found.position) and set(found.layers) <= set(vector.layers)
