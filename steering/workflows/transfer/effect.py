"""Measures how far a carried direction moves what the target writes, next to a native vector and random directions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import copysign
from statistics import fmean

from steering.engine.api import Engine, Prompt, SamplingParams
from steering.errors import InvalidRequest
from steering.model.info import ModelInfo
from steering.plan.types import SteeringPlan
from steering.quality import Estimate
from steering.vectors import ConceptVector
from steering.workflows.comparison.text_metrics import estimate
from steering.workflows.evaluation.setup import ReadBack, plan_at, random_like
from steering.workflows.evaluation.statistics import shifts
from steering.workflows.evaluation.trials import Trial, run_trials, trial_answers
from steering.workflows.progress import Progress, ignore_progress
from steering.workflows.transfer.request import Transfer

DOSE = 0.15
"""Planned relative dose: at 0.2 text breaks for half of the starter concepts (docs/dose_response_results.md)."""
RANDOM_DIRECTIONS = 3
TEMPERATURE = 0.7
"""Of the answers of a job."""


@dataclass(frozen=True, slots=True, eq=False)
class EffectRequest:
    """What is measured. prompts: answered once with each vector. relative_dose: planned, of each vector over its layers together.
    native: a vector of the target, steered at its recommended layers; None: the direction fitted to the pairs."""

    prompts: Sequence[Prompt]
    sampling: SamplingParams
    relative_dose: float = DOSE
    native: ConceptVector | None = None


@dataclass(frozen=True, slots=True)
class Effect:
    """Mean shifts of the answers, with intervals over prompts, in natural scales of the direction fitted to the pairs.

    random: of RANDOM_DIRECTIONS, see `random_shift`. None where a vector drove the numbers out of range.
    """

    native: Estimate | None
    transferred: Estimate | None
    random: Estimate | None


def effect_answers(prompts: int) -> int:
    """How many answers `effect` generates."""
    return trial_answers(2 + RANDOM_DIRECTIONS, prompts)


async def effect(
    target: Engine, found: Transfer, request: EffectRequest, *, progress: Progress = ignore_progress
) -> Effect:
    """Answers the prompts unsteered and with each vector at one relative dose. The unsteered model reads all answers at the layer of
    the transfer, along the direction fitted to the pairs.

    Raises InvalidRequest where the typical norms of the target are not known.
    """
    fitted = replace(found.vector, layers={found.to_layer: found.fitted}, recommended=None)
    random = [random_like(fitted, request.sampling.seed + number + 1) for number in range(RANDOM_DIRECTIONS)]
    vectors = [request.native or fitted, found.vector, *random]
    plans = [await _plan(target.info, vector, request.relative_dose) for vector in vectors]
    reading = ReadBack(found.to_layer, found.fitted)
    unsteered, (native, transferred, *controls) = await run_trials(
        target, request.prompts, plans, reading, request.sampling, perplexity=False, progress=progress
    )
    return Effect(_moved(native, unsteered), _moved(transferred, unsteered), random_shift(controls, unsteered))


async def _plan(info: ModelInfo, vector: ConceptVector, dose: float) -> SteeringPlan:
    """An add at the vector's recommended layers, at one strength, that plans the dose over all of them."""
    if not info.typical_norms:
        raise InvalidRequest(
            "a relative dose needs the typical norms of the model, which were not measured", param="effect"
        )
    layers = vector.recommended_layers()
    planned = sum(vector.at(layer).scale / info.typical_norms[layer] for layer in layers)
    return await plan_at(info, vector, dose / planned, layers)


def _moved(trial: Trial, unsteered: Trial) -> Estimate | None:
    return estimate(shifts(trial, unsteered)) if trial.broken is None else None


def random_shift(controls: Sequence[Trial], unsteered: Trial) -> Estimate | None:
    """Estimates how far a random direction moves answers, whichever side it moves them to: the mean over prompts of the shift,
    averaged over the directions that did not drive the numbers out of range.

    Signed shifts of random directions cancel, since a direction is as likely as its opposite. At each prompt a direction
    counts toward the side to which it moves the answers to the others: with its own, noise alone would count as reach.
    """
    rows = [_toward_the_others(shifts(one, unsteered)) for one in controls if one.broken is None]
    return estimate([fmean(row) for row in zip(*rows, strict=True)]) if rows else None


def _toward_the_others(moved: Sequence[float]) -> list[float]:
    whole = sum(moved)
    return [copysign(1.0, whole - own or own) * own for own in moved]
