"""Evaluations of a vector over many strengths: dose-responses and layer sweeps, and the evidence for its card."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import ceil
from statistics import fmean
from typing import Any

from steering.cards import COHERENT, DosePoint, QualityCard, Recommended, unproved
from steering.concepts.measured import measurement_of
from steering.engine.api import Engine, Prompt, SamplingParams
from steering.errors import InvalidRequest
from steering.lab import trials
from steering.lab.controls import UNGUARDED, plan_at, random_at_each_layer, random_like
from steering.lab.judge import ASPECTS, Judging, instruction_of, judge_answers
from steering.lab.trials import WRITING, ReadBack, Trial, shifts
from steering.plan.dose import DoseGuard
from steering.plan.resolve import resolve_layers
from steering.plan.types import SteeringPlan
from steering.schemas.evaluation import DoseResponseAnswer, LayerPointAnswer, LayerSweepAnswer, ScoresAnswer
from steering.spec import Layers
from steering.vectors import ConceptVector
from steering.workflows.generate import Progress, ignore_progress, progress_of_part

DOSE_STRENGTHS = (-4.0, -2.0, -1.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
DOSE_PROMPTS, NEUTRAL = 16, 8
MAX_CONTROLS = 32
SWEEP_STRENGTHS = (1.0, 2.0, 4.0)
SWEEP_PROMPTS = 8


@dataclass(frozen=True, slots=True, eq=False)
class StrengthsRequest:
    """What evaluations of a vector over many strengths take.

    prompts: what the model answers; None takes the package's neutral prompts.
    strengths: in natural scales of each layer.
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
class DoseResponseRequest(StrengthsRequest):
    """One vector over a range of strengths at its layers.

    neutral: prompts on which side effects are measured; None takes the package's neutral prompts.
    random_directions: controls of equal dose at each strength, 0 to MAX_CONTROLS.
    judging: an additional judge.
    """

    strengths: tuple[float, ...] = DOSE_STRENGTHS
    layers: Layers = "recommended"
    neutral: tuple[Prompt, ...] | None = None
    random_directions: int = trials.CONTROLS
    judging: Judging | None = None


@dataclass(frozen=True, slots=True, eq=False)
class LayerSweepRequest(StrengthsRequest):
    """One vector at one layer at a time, at strengths of one sign, read at the same layer throughout."""

    strengths: tuple[float, ...] = SWEEP_STRENGTHS


@dataclass(frozen=True, slots=True, eq=False)
class Setup:
    """A request with names and defaults resolved.

    strengths: ascending, each once, without 0, which every evaluation includes.
    arms: the vector, then its random controls.
    places: layers and strength of each plan of an arm.
    """

    reading: ReadBack
    layers: tuple[int, ...]
    prompts: tuple[Prompt, ...]
    neutral: tuple[Prompt, ...]
    strengths: list[float]
    arms: list[ConceptVector]
    places: Sequence[tuple[tuple[int, ...], float]]

    @property
    def answers(self) -> int:
        """Returns how many answers the evaluation generates."""
        return trials.trial_answers(len(self.arms) * len(self.places), len(self.prompts)) + len(self.neutral)

    async def plans(self, engine: Engine, guard: DoseGuard) -> list[SteeringPlan]:
        """Returns the plans of every arm in turn, each in the order of the places."""
        return [
            await plan_at(engine.info, arm, strength, layers, guard)
            for arm in self.arms
            for layers, strength in self.places
        ]


def resolved(engine: Engine, request: DoseResponseRequest | LayerSweepRequest) -> Setup:
    """Resolves a request; draws the random controls. Raises InvalidRequest for invalid strengths, layers, prompts or
    scorer, VectorModelMismatch for another model's vector."""
    vector = request.vector
    controls, count = 0, SWEEP_PROMPTS
    if isinstance(request, DoseResponseRequest):
        controls, count = request.random_directions, DOSE_PROMPTS
    if not 0 <= controls <= MAX_CONTROLS:
        raise InvalidRequest(
            f"random_directions must be 0 to {MAX_CONTROLS}, got {controls}", param="random_directions"
        )
    reading = trials.read_back(engine, vector, request.reader, request.reading_layer, request.scorer)
    layers = resolve_layers(request.layers, vector, engine.info.layer_count)
    prompts = trials.evaluation_prompts(engine, request.prompts, count)
    strengths = sorted({float(strength) for strength in request.strengths} - {0.0})
    if not strengths:
        raise InvalidRequest("a sweep needs at least one strength other than 0", param="strengths")
    seed = request.sampling.seed + 1
    if isinstance(request, DoseResponseRequest):
        arms = [vector, *(random_like(vector, seed + i) for i in range(controls))]
        neutral = trials.evaluation_prompts(engine, request.neutral, NEUTRAL)
        return Setup(reading, layers, prompts, neutral, strengths, arms, [(layers, one) for one in strengths])
    if strengths[0] < 0.0 < strengths[-1]:
        raise InvalidRequest(
            "a layer sweep takes strengths of one sign, so that layers can be ranked", param="strengths"
        )
    # drawn for each layer by itself: those of a rotated vector agree from layer to layer and would count as one
    arms = [vector, *(random_at_each_layer(vector, seed + i) for i in range(ceil(trials.CONTROLS / len(layers))))]
    places = [((layer,), strength) for layer in layers for strength in strengths]
    return Setup(reading, layers, prompts, (), strengths, arms, places)


def answers_to_write(engine: Engine, request: DoseResponseRequest | LayerSweepRequest) -> int:
    """Returns how many answers an evaluation generates. Raises what it raises before it generates the first."""
    return resolved(engine, request).answers


async def dose_response(
    engine: Engine, request: DoseResponseRequest, *, progress: Progress = ignore_progress
) -> DoseResponseAnswer:
    """Runs the evaluation. Strengths that make activations non-finite are left out. Raises what `resolved` raises."""
    setup = resolved(engine, request)
    strengths, prompts, sampling = setup.strengths, setup.prompts, request.sampling
    plans = await setup.plans(engine, request.guard)
    work = 2 * trials.trial_answers(len(plans), len(prompts))
    total = work + len(setup.neutral)
    total += len(ASPECTS) * len(prompts) * (len(strengths) + 1) if request.judging else 0
    running = progress_of_part(progress, 0, total)
    unsteered, steered = await trials.run_trials(engine, prompts, plans, setup.reading, sampling, progress=running)
    # they are in the order of the plans: those of the vector by strength, then those of each control by strength
    rows = {strength: steered[i :: len(strengths)] for i, strength in enumerate(strengths)}
    by_strength = {strength: row for strength, row in rows.items() if all(trial.broken is None for trial in row)}
    kept = [plans[i] for i, strength in enumerate(strengths) if strength in by_strength]
    reading = progress_of_part(progress, work, total)
    damage = await trials.neutral_divergence(engine, setup.neutral, kept, sampling, progress=reading)
    answer = _answer(request, setup, unsteered, by_strength, [one.mean for one in damage])
    if request.judging is None:
        return answer
    texts = {0.0: unsteered.texts, **{strength: row[0].texts for strength, row in by_strength.items()}}
    instructions = request.judging.instructions or [instruction_of(prompt, engine.tokenizer) for prompt in prompts]
    rating = progress_of_part(progress, total - len(ASPECTS) * len(prompts) * len(texts), total)
    judgement = await judge_answers(request.judging, instructions, texts, progress=rating)
    return answer.model_copy(update={"judgement": judgement})


def _answer(
    request: DoseResponseRequest,
    setup: Setup,
    unsteered: Trial,
    by_strength: Mapping[float, Sequence[Trial]],
    kl: Sequence[float],
) -> DoseResponseAnswer:
    """by_strength: the vector's trial, then those of its random controls. kl: on neutral text, by strength."""
    points, recommended = trials.dose_points(setup.layers, unsteered, by_strength, kl)
    moved = {0.0: shifts(unsteered, unsteered)} | {s: shifts(row[0], unsteered) for s, row in by_strength.items()}
    coherent = {s: moved[s] for s in moved if points[s].perplexity_ratio <= COHERENT}
    against = trials.anti_steered(coherent if len(coherent) > 1 else moved)
    warnings = []
    if broken := [f"{strength:g}" for strength in setup.strengths if strength not in by_strength]:
        warnings.append(f"left out, because activations became non-finite: strength {', '.join(broken)}")
    if not request.random_directions:
        warnings.append("no random directions, so the shift is compared with 0")
    elif request.random_directions < trials.CONTROLS:
        warnings.append(
            f"few random directions: {request.random_directions}; {trials.CONTROLS} or more are recommended"
        )
    for sign, name, found in ((1.0, "positive", recommended.strength), (-1.0, "negative", recommended.negative)):
        side = [one.moves_on_average for strength, one in points.items() if strength * sign > 0.0]
        if found is None and side:
            warnings.append(_unproved(f"at {name} strengths", side))
    if against is not None and against > 0.25:
        warnings.append(f"the score falls as the strength grows for {against:.0%} of the prompts")
    return DoseResponseAnswer(
        vector=request.vector.id if request.vector.version else request.vector.name,
        layers=setup.layers,
        reading_layer=setup.reading.layer,
        unit=trials.SCORERS[setup.reading.scorer].unit,
        baseline_score=fmean(unsteered.scores),
        points=tuple(points[strength] for strength in sorted(points)),
        anti_steered=against,
        recommended=recommended,
        warnings=tuple(warnings),
        scores=(
            unsteered.answer("unsteered"),
            *(scores for strength, row in by_strength.items() for scores in _scores(row, strength=strength)),
        ),
    )


def _scores(row: Sequence[Trial], **place: Any) -> Iterator[ScoresAnswer]:
    """Yields every answer of the vector's trial, then of those of its random controls."""
    ours, *controls = row
    yield ours.answer("steered", **place)
    for number, control in enumerate(controls):
        yield control.answer("random", direction=number, **place)


async def layer_sweep(
    engine: Engine, request: LayerSweepRequest, *, progress: Progress = ignore_progress
) -> LayerSweepAnswer:
    """Runs the sweep. A point that makes activations non-finite is left out, and a warning says so. The layer of the
    best point is recommended, with the strengths that hold there. Raises what `resolved` raises."""
    vector, setup = request.vector, resolved(engine, request)
    plans = await setup.plans(engine, request.guard)
    unsteered, steered = await trials.run_trials(
        engine, setup.prompts, plans, setup.reading, request.sampling, progress=progress
    )
    ours, random = steered[: len(setup.places)], steered[len(setup.places) :]
    points = layer_points(vector, setup, unsteered, ours, random)
    places = zip(setup.places, ours, strict=True)
    broken = [f"layer {layer} at {strength:g}" for ((layer,), strength), one in places if one.broken is not None]
    warnings = [f"left out, because activations became non-finite: {', '.join(broken)}"] if broken else []
    best, recommended = best_point(points), None
    if best is None:
        on_average = [one.advantage.mean > 0.0 and one.perplexity_ratio <= COHERENT for one in points]
        warnings.append(_unproved("at any layer", on_average))
    else:
        at_best = {point.strength: _margin(point) for point in points if point.layer == best.layer}
        recommended = trials.measured_ranges((best.layer,), at_best)
    return LayerSweepAnswer(
        vector=vector.id if vector.version else vector.name,
        reading_layer=setup.reading.layer,
        points=points,
        best=best,
        recommended=recommended,
        warnings=warnings,
        scores=(
            unsteered.answer("unsteered"),
            *(
                scores
                for i, ((layer,), strength) in enumerate(setup.places)
                for scores in _scores(steered[i :: len(setup.places)], strength=strength, layer=layer)
            ),
        ),
    )


def _unproved(where: str, on_average: Sequence[bool]) -> str:
    """Says that no strength holds, and whether one does on average."""
    how = "each with its 95 % interval" if any(on_average) else "not even on average"
    return (
        f"{unproved(on_average)} {where}: no strength moved the concept beyond chance while perplexity stayed within "
        f"{COHERENT:g} times that of unsteered text, {how}"
    )


def _margin(point: LayerPointAnswer) -> float | None:
    return trials.margin(point.advantage, point.perplexity_interval)


def best_point(points: Sequence[LayerPointAnswer]) -> LayerPointAnswer | None:
    """Returns, among the points that hold, the one with the largest margin; None if none holds."""
    sound = [(found, point) for point in points if (found := _margin(point)) is not None]
    return max(sound, key=lambda found: found[0])[1] if sound else None


def layer_points(
    vector: ConceptVector, setup: Setup, unsteered: Trial, ours: Sequence[Trial], random: Sequence[Trial]
) -> list[LayerPointAnswer]:
    """Builds the points of a sweep, without those that broke. ours: by place. random: by control, then place. Chance is one
    bound for each strength over the random directions of all layers, which share its one case in twenty."""
    count = len(setup.strengths)  # at every layer the trials are in the order of the strengths
    moved = {one: trials.mean_shifts(unsteered, random[i::count]) for i, one in enumerate(setup.strengths)}
    bounds = trials.chance(moved, tests=len(setup.layers))
    return [
        _layer_point(vector, layer, strength, trial, unsteered, bounds.get(strength))
        for ((layer,), strength), trial in zip(setup.places, ours, strict=True)
        if trial.broken is None
    ]


def _layer_point(
    vector: ConceptVector, layer: int, strength: float, trial: Trial, unsteered: Trial, bound: float | None
) -> LayerPointAnswer:
    """bound: `chance` at the strength, over all layers."""
    perplexity = trials.perplexity_ratio(trial, unsteered)
    quality = vector.quality.layers.get(layer) if vector.quality else None
    return LayerPointAnswer(
        layer=layer,
        strength=strength,
        moved=trials.advantage(strength, trial, unsteered, None),
        advantage=trials.advantage(strength, trial, unsteered, bound),
        chance=bound,
        perplexity_ratio=perplexity.mean,
        repetition=trial.mean("repetition"),
        relative_dose=trial.mean("dose"),
        auroc=None if quality is None else quality.auroc,
        perplexity_interval=perplexity.interval,
    )


def with_evidence(vector: ConceptVector, response: DoseResponseAnswer) -> ConceptVector:
    """Returns the vector with the dose-response on its card and its ranges as the recommendation, which may be none."""
    card = vector.quality or QualityCard(pairs=0, holdout=0, layers={})
    warnings = tuple(dict.fromkeys((*card.warnings, *response.warnings)))
    names = [field.name for field in fields(DosePoint)]
    points = tuple(DosePoint(**{name: getattr(one, name) for name in names}) for one in response.points)
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
    """Returns a vector of a starter concept with the dose-response that ships with the package, if it is the same
    vector: the same model, pairs, method and position, with the measured layers, which become the recommended ones.
    Where too few prompts were measured to tell, the card's own recommendation stays."""
    found, made = measurement_of(concept, vector.model_fingerprint), vector.provenance
    if found is None or vector.quality is None or not set(found.layers) <= set(vector.layers):
        return vector
    origin = made.get("dataset"), made.get("method"), str(made.get("position"))
    if origin != (found.dataset, found.method, found.position):
        return vector
    warnings = (*vector.quality.warnings, *(() if found.claims else (found.summary,)))
    card = replace(vector.quality, warnings=warnings)
    if not found.claims and found.moves_on_average:
        return replace(vector, quality=card)
    card = replace(card, dose_response=found.points, anti_steered=found.anti_steered)
    recommended = Recommended(found.layers, found.strength, found.negative, basis="measured")
    return _proved(vector, card, recommended, {"shipped": concept}, found.reading_layer)
