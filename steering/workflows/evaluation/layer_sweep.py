"""Finds the layer at which a vector moves text furthest while the text stays coherent."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil
from statistics import fmean

from steering.engine.api import Engine
from steering.errors import InvalidRequest
from steering.quality import COHERENT, Estimate
from steering.schemas.comparison import EstimateAnswer
from steering.schemas.evaluation import LayerPointAnswer, LayerSweepAnswer
from steering.schemas.vectors import RecommendedAnswer
from steering.vectors import ConceptVector
from steering.workflows.evaluation.setup import Setup, StrengthsRequest, plan_at, random_at_each_layer, resolved
from steering.workflows.evaluation.statistics import advantage, holds, measured_ranges, perplexity_ratio
from steering.workflows.evaluation.trials import Trial, run_trials, trial_answers
from steering.workflows.progress import Progress, ignore_progress

STRENGTHS = (1.0, 2.0, 4.0)
PROMPTS = 8
CONTROLS = 8
"""Random directions per strength, at least, over all layers together."""


@dataclass(frozen=True, slots=True, eq=False)
class LayerSweepRequest(StrengthsRequest):
    """One vector at one layer at a time. strengths: all of one sign. The text is read at the same layer throughout, so that layers
    can be compared.

    A dose-response with the same prompts and seed gives the same answers at a shared layer and strength. Only chance
    differs: here it is estimated from random directions at all layers together, there from directions at that layer.
    """

    strengths: tuple[float, ...] = STRENGTHS


async def layer_sweep(
    engine: Engine, request: LayerSweepRequest, *, progress: Progress = ignore_progress
) -> LayerSweepAnswer:
    """Runs the sweep. A point that makes activations non-finite is left out, and a warning says so. The layer of the best point
    is recommended, with the strengths that hold there.

    Raises InvalidRequest for invalid strengths, layers, prompts or scorer, VectorModelMismatch for another model's vector.
    """
    vector, setup = request.vector, _setup(engine, request)
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
            points.append(_point(vector, layer, strength, trial, unsteered, controls[strength]))
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
        found = measured_ranges((best.layer,), at_best)
        recommended = RecommendedAnswer.model_validate(found, from_attributes=True)
    return LayerSweepAnswer(
        vector=vector.id if vector.version else vector.name,
        reading_layer=setup.reading.layer,
        points=points,
        best=best,
        recommended=recommended,
        warnings=warnings,
    )


def _setup(engine: Engine, request: LayerSweepRequest) -> Setup:
    # drawn for each layer by itself: those of a rotated vector agree from layer to layer and would count as one
    found = resolved(engine, request, PROMPTS, lambda layers: ceil(CONTROLS / layers), random_at_each_layer)
    if found.strengths[0] < 0.0 < found.strengths[-1]:
        raise InvalidRequest(
            "a layer sweep takes strengths of one sign, so that layers can be ranked", param="strengths"
        )
    return found


def answers_to_write(engine: Engine, request: LayerSweepRequest) -> int:
    """Returns how many answers it generates. Raises what `layer_sweep` raises before generating the first."""
    setup = _setup(engine, request)
    return trial_answers(len(setup.arms) * len(setup.layers) * len(setup.strengths), len(setup.prompts))


def _holds(point: LayerPointAnswer) -> bool:
    return holds(point.advantage.interval, point.perplexity_interval)


def best_point(points: Sequence[LayerPointAnswer]) -> LayerPointAnswer | None:
    """Returns, among the points that hold, the one whose advantage has the highest lower end; None if none holds."""
    sound = [(point.advantage.interval[0], point) for point in points if point.advantage.interval and _holds(point)]
    return max(sound, key=lambda found: found[0])[1] if sound else None


def _point(
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
        moved=_answer(advantage(strength, trial, unsteered, [])),
        advantage=_answer(advantage(strength, trial, unsteered, controls)),
        perplexity_ratio=perplexity.mean,
        repetition=fmean(one.repetition for one in trial.measures),
        relative_dose=fmean(one.dose for one in trial.measures),
        auroc=None if quality is None else quality.auroc,
        perplexity_interval=perplexity.interval,
    )


def _answer(found: Estimate) -> EstimateAnswer:
    return EstimateAnswer(mean=found.mean, interval=found.interval)
