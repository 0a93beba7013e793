"""Dose-responses: a vector over many strengths at its layers, and the evidence for its card."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import inf
from statistics import fmean
from typing import Any

from steering.cards import COHERENT, DosePoint, Estimate, QualityCard, Recommended, verdict_without_proof
from steering.concepts.measured import measurement_of
from steering.engine.api import Engine, Prompt, SamplingParams
from steering.errors import InvalidRequest
from steering.lab import calibration, trials
from steering.lab.controls import DOSE_RESPONSE, UNGUARDED, plan_at, random_arms
from steering.lab.judge import ASPECTS, Judging, instruction_of, judge_answers
from steering.lab.trials import WRITING, Checkpoints, ReadBack, Trial, shifts
from steering.plan.resolve import resolve_layers
from steering.plan.types import DoseGuard
from steering.schemas.evaluation import DoseResponseAnswer, EvaluatedPoint, ScoresAnswer
from steering.spec import Layers
from steering.vectors import ConceptVector
from steering.workflows.generate import Progress, ignore_progress, progress_of_part

DOSE_STRENGTHS = (-4.0, -2.0, -1.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
DOSE_PROMPTS, NEUTRAL, FIRST_NEUTRAL = 16, 8, 64
"""How many of the package's neutral prompts are answered, and how many from which on show the damage."""
WARNINGS = "evaluation_warnings"
"""The key of the provenance that lists the warnings of the card that an evaluation added."""


@dataclass(frozen=True, slots=True, eq=False)
class StrengthsRequest:
    """What evaluations of a vector over strengths (in natural scales) take.
    prompts: None takes neutral prompts of the package.
    reader: scores the text (None: this vector), at reading_layer (None: where it reads best).
    guard: refuses strengths beyond a dose. checkpoints: keeps finished parts."""

    vector: ConceptVector
    prompts: tuple[Prompt, ...] | None = None
    strengths: tuple[float, ...] = ()
    layers: Layers = "all"
    reader: ConceptVector | None = None
    reading_layer: int | None = None
    scorer: str = "projection"
    sampling: SamplingParams = WRITING
    guard: DoseGuard = UNGUARDED
    checkpoints: Checkpoints | None = None


@dataclass(frozen=True, slots=True, eq=False)
class DoseResponseRequest(StrengthsRequest):
    """One vector over strengths at its layers. neutral: prompts for side effects; None takes those of the package.
    random_directions: controls of equal dose at each strength. judging: an additional judge."""

    strengths: tuple[float, ...] = DOSE_STRENGTHS
    layers: Layers = "recommended"
    neutral: tuple[Prompt, ...] | None = None
    random_directions: int = trials.CONTROLS
    judging: Judging | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Setup:
    """A request resolved. strengths: ascending, without 0, which is always measured. arms: the vector, then controls."""

    reading: ReadBack
    layers: tuple[int, ...]
    prompts: tuple[Prompt, ...]
    neutral: tuple[Prompt, ...]
    strengths: list[float]
    arms: list[ConceptVector]

    @property
    def answers(self) -> int:
        """Returns how many answers the evaluation generates."""
        return trials.trial_answers(len(self.arms) * len(self.strengths), len(self.prompts)) + len(self.neutral)

    @property
    def reads(self) -> int:
        """Returns how many answers to neutral prompts are read at most: at each strength, and without steering."""
        return len(self.neutral) * (len(self.strengths) + 1)


def resolved(engine: Engine, request: DoseResponseRequest) -> Setup:
    """Resolves a request and draws its controls. Raises InvalidRequest, VectorModelMismatch."""
    vector = request.vector
    reading = trials.read_back(engine, vector, request.reader, request.reading_layer, request.scorer)
    layers = resolve_layers(request.layers, vector, engine.info.layer_count)
    prompts = trials.evaluation_prompts(engine, request.prompts, DOSE_PROMPTS)
    neutral = trials.evaluation_prompts(engine, request.neutral, NEUTRAL, FIRST_NEUTRAL)
    arms = [vector, *random_arms(vector, request.sampling.seed, DOSE_RESPONSE, request.random_directions)]
    return Setup(reading, layers, prompts, neutral, strengths_of(request), arms)


def strengths_of(request: StrengthsRequest) -> list[float]:
    """Returns the strengths of a request, ascending, each once and without 0. Raises InvalidRequest where none is left."""
    strengths = sorted({float(strength) for strength in request.strengths} - {0.0})
    if not strengths:
        raise InvalidRequest("an evaluation needs at least one strength other than 0", param="strengths")
    return strengths


async def dose_response(
    engine: Engine, request: DoseResponseRequest, *, progress: Progress = ignore_progress
) -> DoseResponseAnswer:
    """Runs the evaluation. A strength with non-finite activations is left out; one at which all random directions had
    them is not recommended. Raises what `resolved` raises."""
    setup = resolved(engine, request)
    strengths, prompts, sampling = setup.strengths, setup.prompts, request.sampling
    arms = [(arm, strength) for arm in setup.arms for strength in strengths]
    plans = [await plan_at(engine.info, *one, setup.layers, request.guard) for one in arms]
    work = 2 * trials.trial_answers(len(plans), len(prompts))
    total = work + len(setup.neutral)
    total += len(ASPECTS) * len(prompts) * (len(strengths) + 1) if request.judging else 0
    running = progress_of_part(progress, 0, total)
    unsteered, steered = await trials.run_trials(
        engine, prompts, plans, setup.reading, sampling, checkpoints=request.checkpoints, progress=running
    )
    # they are in the order of the plans: those of the vector by strength, then those of each control by strength
    rows = {strength: steered[i :: len(strengths)] for i, strength in enumerate(strengths)}
    kept = {strength: plans[i] for i, strength in enumerate(strengths) if rows[strength][0].broken is None}
    reading = progress_of_part(progress, work, total)
    damage = await calibration.neutral_divergence(engine, setup.neutral, [*kept.values()], sampling, progress=reading)
    kl = {s: None if one is None else one.mean for s, one in zip(kept, damage, strict=True) if one != Estimate(inf)}
    by_strength = {strength: rows[strength] for strength in kl}
    points = trials.dose_points(unsteered, by_strength, [*kl.values()])
    # a range has no strength inside at which activations became non-finite
    margins = dict.fromkeys(strengths) | {strength: one.margin for strength, one in points.items()}
    recommended = trials.measured_ranges(setup.layers, margins)
    moved = {0.0: shifts(unsteered, unsteered)} | {s: shifts(row[0], unsteered) for s, row in by_strength.items()}
    coherent = {s: moved[s] for s in moved if points[s].perplexity_ratio <= COHERENT}
    against = trials.anti_steered(coherent if len(coherent) > 1 else moved)
    warnings = _broken(rows, points)
    if not request.random_directions:
        warnings.append("no random directions, so the shift is compared with 0")
    elif request.random_directions < trials.CONTROLS:
        warnings.append(
            f"few random directions: {request.random_directions}; {trials.CONTROLS} or more are recommended"
        )
    for sign, name, found in ((1.0, "positive", recommended.strength), (-1.0, "negative", recommended.negative)):
        side = [one.moves_on_average for strength, one in points.items() if strength * sign > 0.0]
        if found is None and any(one is not None for one in side):
            warnings.append(unproved(f"at {name} strengths", side))
    if against is not None and against > 0.25:
        warnings.append(f"the score falls as the strength grows for {against:.0%} of the prompts")
    answer = DoseResponseAnswer(
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
            *(
                scores
                for strength, (ours, *controls) in by_strength.items()
                for scores in scores_of(ours, dict(enumerate(controls)), strength=strength)
            ),
        ),
    )
    if request.judging is None:
        return answer
    texts = {0.0: unsteered.texts, **{strength: row[0].texts for strength, row in by_strength.items()}}
    instructions = request.judging.instructions or [instruction_of(prompt, engine.tokenizer) for prompt in prompts]
    rating = progress_of_part(progress, total - len(ASPECTS) * len(prompts) * len(texts), total)
    judgement = await judge_answers(request.judging, instructions, texts, progress=rating)
    return answer.model_copy(update={"judgement": judgement})


def _broken(rows: Mapping[float, Sequence[Trial]], points: Mapping[float, EvaluatedPoint]) -> list[str]:
    """Names strengths with non-finite activations. rows: the vector's trial, then its controls. points: those kept."""
    own = [strength for strength in rows if strength not in points]
    unbounded = [strength for strength in rows if strength in points and points[strength].threshold is None]
    some = [
        strength
        for strength, (_, *controls) in rows.items()
        if strength not in (*own, *unbounded) and any(one.broken is not None for one in controls)
    ]
    said = {
        "left out, because activations became non-finite": own,
        "not recommended, because every random direction made activations non-finite and chance is not known": unbounded,
        "some random directions made activations non-finite and do not count for chance": some,
    }
    return [f"{what}: strength {', '.join(f'{one:g}' for one in found)}" for what, found in said.items() if found]


def scores_of(ours: Trial, controls: Mapping[int, Trial], **place: Any) -> Iterator[ScoresAnswer]:
    """Yields every answer of the vector's trial, then of those of its random controls by their numbers."""
    yield ours.answer("steered", **place)
    for number, control in controls.items():
        yield control.answer("random", direction=number, **place)


def unproved(where: str, on_average: Sequence[bool | None]) -> str:
    """Says that no strength holds, and whether one does on average. on_average: None where chance is not known."""
    how = "each with its 95 % interval" if any(on_average) else "not even on average"
    return (
        f"{verdict_without_proof(on_average)} {where}: no strength moved the concept beyond chance while perplexity stayed "
        f"within {COHERENT:g} times that of unsteered text, {how}"
    )


def with_evidence(vector: ConceptVector, response: DoseResponseAnswer) -> ConceptVector:
    """Returns the vector with the dose-response on its card and its ranges as the recommendation, which may be none."""
    vector, card = _with_warnings(vector, response.warnings)
    names = [field.name for field in fields(DosePoint)]
    points = tuple(DosePoint(**{name: getattr(one, name) for name in names}) for one in response.points)
    card = replace(card, dose_response=points, anti_steered=response.anti_steered)
    return _proved(vector, card, response.recommended, {"vector": response.vector}, response.reading_layer)


def _with_warnings(vector: ConceptVector, warnings: Sequence[str]) -> tuple[ConceptVector, QualityCard]:
    """Returns the vector, and its card with the warnings of an evaluation in place of those of the one before, which the
    provenance names."""
    card = vector.quality or QualityCard(pairs=0, holdout=0, layers={})
    before = vector.provenance.get(WARNINGS)
    before = before if isinstance(before, list) else []  # a vector from a file may have anything there
    kept = [one for one in card.warnings if one not in before]
    added = [one for one in dict.fromkeys(warnings) if one not in kept]
    card = replace(card, warnings=(*kept, *added))
    provenance = {key: value for key, value in vector.provenance.items() if key != WARNINGS}
    return replace(vector, quality=card, provenance=provenance | ({WARNINGS: added} if added else {})), card


def _proved(
    vector: ConceptVector, card: QualityCard, recommended: Recommended, source: dict[str, str], reading_layer: int
) -> ConceptVector:
    """Returns the vector with a card and what was measured; its provenance says where that is from."""
    measured = {**source, "layers": list(recommended.layers), "reading_layer": reading_layer}
    provenance = {**vector.provenance, "dose_response": measured}
    return replace(vector, quality=card, recommended=recommended, provenance=provenance)


def with_shipped_evidence(vector: ConceptVector, concept: str) -> ConceptVector:
    """Returns the vector of a starter concept with the shipped dose-response, if model, pairs, method, position and
    layers are the same. Where too few prompts were measured, the card's recommendation stays."""
    found, made = measurement_of(concept, vector.model_fingerprint), vector.provenance
    if found is None or vector.quality is None or not set(found.layers) <= set(vector.layers):
        return vector
    origin = made.get("dataset"), made.get("method"), str(made.get("position"))
    if origin != (found.dataset, found.method, found.position):
        return vector
    vector, card = _with_warnings(vector, () if found.claims else (found.summary,))
    if not found.claims and found.moves_on_average:
        return vector
    card = replace(card, dose_response=found.points, anti_steered=found.anti_steered)
    ranges = found.strength, found.negative
    margin = trials.closest_margin({point.strength: point.margin for point in found.points}, *ranges)
    recommended = Recommended(found.layers, *ranges, basis="measured", margin=margin)
    return _proved(vector, card, recommended, {"shipped": concept}, found.reading_layer)
