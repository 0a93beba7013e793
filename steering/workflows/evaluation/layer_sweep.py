"""At which layer does a vector move text the furthest before the text breaks?"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, product
from math import ceil
from statistics import fmean

from steering.engine.api import Engine, Prompt, SamplingParams
from steering.errors import InvalidRequest
from steering.plan.layers import resolve_layers
from steering.quality import Recommended
from steering.spec import Layers
from steering.vectors import ConceptVector
from steering.workflows.comparison.text_metrics import Estimate
from steering.workflows.evaluation.setup import (
    ReadBack,
    evaluation_prompts,
    plan_at,
    random_like,
    read_back,
    steered_strengths,
)
from steering.workflows.evaluation.statistics import COHERENT, advantage, perplexity_ratio
from steering.workflows.evaluation.trials import WRITING, Trial, run_trials, trial_answers
from steering.workflows.progress import Progress

STRENGTHS = (1.0, 2.0, 4.0)
PROMPTS = 8
CONTROLS = 4
"""Random directions at a strength, at least, all layers taken together."""


@dataclass(frozen=True, slots=True, eq=False)
class LayerSweepRequest:
    """One vector at one layer at a time. strengths: in natural scales of each layer, all of one sign. The rest is as in
    a dose-response; the text is read at the same layer throughout, so that layers can be compared."""

    vector: ConceptVector
    prompts: tuple[Prompt, ...] | None = None
    layers: Layers = "all"
    strengths: tuple[float, ...] = STRENGTHS
    reader: ConceptVector | None = None
    reading_layer: int | None = None
    scorer: str = "projection"
    sampling: SamplingParams = WRITING


@dataclass(frozen=True, slots=True)
class LayerPoint:
    """One layer at one strength. moved: shift of the score in the direction of the strength's sign, over prompts.
    advantage: the same less what one random direction in twenty reaches at that strength, all layers taken together.
    auroc: the held-out one of the vector's card, beside it, since the layer that reads best need not steer best."""

    layer: int
    strength: float
    moved: Estimate
    advantage: Estimate
    perplexity_ratio: float
    repetition: float
    relative_dose: float
    auroc: float | None


@dataclass(frozen=True, slots=True)
class LayerSweep:
    """points: by layer, then strength. best: the coherent one that surely moved furthest beyond chance; None if none did."""

    vector: str
    reading_layer: int
    points: tuple[LayerPoint, ...]
    best: LayerPoint | None
    recommended: Recommended | None
    warnings: tuple[str, ...] = ()


async def layer_sweep(engine: Engine, request: LayerSweepRequest, *, progress: Progress | None = None) -> LayerSweep:
    """Raises InvalidRequest for strengths, layers, prompts or a scorer that cannot be, VectorModelMismatch for another
    model's vector. What drives the numbers out of range is left out, and a warning says so."""
    vector, setup = request.vector, _setup(engine, request)
    reading, places = setup.reading, setup.places
    plans = [await plan_at(engine.info, arm, strength, (layer,)) for arm in setup.arms for layer, strength in places]
    unsteered, trials = await run_trials(engine, setup.prompts, plans, reading, request.sampling, progress=progress)
    rest, controls = trials[: len(places)], _controls(places, trials[len(places) :])
    seed = request.sampling.seed % 2**32
    points, broken = [], []
    for (layer, strength), trial in zip(places, rest, strict=True):
        if trial.broken is None:
            points.append(_point(vector, layer, strength, trial, unsteered, controls[strength], seed))
        else:
            broken.append(f"layer {layer} at {strength:g}")
    best = best_point(points)
    said = [f"left out, because activations went out of range: {', '.join(broken)}"] if broken else []
    if best is None:
        said.append(
            "at no layer did the text move further than random directions move it while perplexity stayed within "
            f"{COHERENT:g} times that of unsteered text"
        )
    return LayerSweep(
        vector=vector.id if vector.version else vector.name,
        reading_layer=reading.layer,
        points=tuple(points),
        best=best,
        recommended=None if best is None else _recommended(points, best),
        warnings=tuple(said),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Setup:
    """A request with everything looked up. places: (layer, strength). arms: the vector, then the random ones."""

    reading: ReadBack
    places: list[tuple[int, float]]
    prompts: tuple[Prompt, ...]
    arms: list[ConceptVector]


def _setup(engine: Engine, request: LayerSweepRequest) -> _Setup:
    vector = request.vector
    reading = read_back(engine, vector, request.reader, request.reading_layer, request.scorer)
    strengths = _one_sided(steered_strengths(request.strengths))
    layers = resolve_layers(request.layers, vector, engine.info.layer_count)
    prompts = evaluation_prompts(engine, request.prompts, PROMPTS)
    controls = range(ceil(CONTROLS / len(layers)))
    arms = [vector, *(random_like(vector, request.sampling.seed + 1 + i) for i in controls)]
    return _Setup(reading, list(product(layers, strengths)), prompts, arms)


def answers_to_write(engine: Engine, request: LayerSweepRequest) -> int:
    """How many answers it takes. Raises at once what `layer_sweep` would raise before its first."""
    setup = _setup(engine, request)
    return trial_answers(len(setup.arms) * len(setup.places), len(setup.prompts))


def _controls(places: list[tuple[int, float]], trials: Sequence[Trial]) -> dict[float, list[Trial]]:
    """The random directions of every layer, by strength. trials: those of one random vector after the other."""
    found: dict[float, list[Trial]] = {strength: [] for _, strength in places}
    for (_, strength), trial in zip(cycle(places), trials, strict=False):
        if trial.broken is None:
            found[strength].append(trial)
    return found


def _one_sided(strengths: list[float]) -> list[float]:
    if strengths[0] < 0.0 < strengths[-1]:
        raise InvalidRequest(
            "a layer sweep takes strengths of one sign, so that layers can be ranked", param="strengths"
        )
    return strengths


def best_point(points: Sequence[LayerPoint]) -> LayerPoint | None:
    """Among coherent points whose advantage is surely above 0, the one for which its lower end is the highest."""
    sound = [
        (point.advantage.interval[0], point)
        for point in points
        if point.advantage.interval is not None
        and point.advantage.interval[0] > 0.0
        and point.perplexity_ratio <= COHERENT
    ]
    return max(sound, key=lambda found: found[0])[1] if sound else None


def _recommended(points: Sequence[LayerPoint], best: LayerPoint) -> Recommended:
    """The best layer, from the weakest strength there that surely moved text to the strongest that kept it coherent."""
    there = [point for point in points if point.layer == best.layer and best_point([point]) is not None]
    strengths = sorted(point.strength for point in there)
    return Recommended((best.layer,), (strengths[0], strengths[-1]))


def _point(
    vector: ConceptVector,
    layer: int,
    strength: float,
    trial: Trial,
    unsteered: Trial,
    controls: Sequence[Trial],
    seed: int,
) -> LayerPoint:
    quality = vector.quality.layers.get(layer) if vector.quality else None
    return LayerPoint(
        layer=layer,
        strength=strength,
        moved=advantage(strength, trial, unsteered, [], seed),
        advantage=advantage(strength, trial, unsteered, controls, seed),
        perplexity_ratio=perplexity_ratio(trial, unsteered),
        repetition=fmean(one.repetition for one in trial.measures),
        relative_dose=fmean(one.dose for one in trial.measures),
        auroc=None if quality is None else quality.auroc,
    )
