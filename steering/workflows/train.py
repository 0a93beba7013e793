"""Trains a direction by gradient descent against the frozen model, then measures it on held-out topics like any other.

Rank-1 preference training as in BiPO (arXiv 2406.00045), RePS (2505.20809) and ReFT-r1 (2404.03592).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from steering.cards import Estimate, Recommended
from steering.engine.api import Engine, FitTask, FittedDirection
from steering.engine.capabilities import fitting_of
from steering.errors import InvalidRequest
from steering.extraction import METHODS
from steering.extraction.base import Negatives, Positives, orient
from steering.extraction.card import best_layer
from steering.extraction.cross_validation import Folding, LayerFit, fit_layer, folding, folding_of
from steering.layer_indices import layer_indices
from steering.pairs import PairSet, Split, split
from steering.threads import run_in_thread
from steering.vectors import ConceptVector, check_name
from steering.workflows.extract import (
    ExtractionRequest,
    ReadPairs,
    assembled,
    check_position,
    fit_layers,
    notes_of,
    provenance_of,
    read_pairs,
)
from steering.workflows.generate import Progress, ignore_progress, progress_of_part
from steering.workflows.texts import neutral_texts, token_pairs

TRAINED = "trained"
"""The name of the method, in addition to those of METHODS."""
START = "mean_difference"
"""The method that initializes the fit and whose natural scale its strengths are multiples of."""


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """See FitTask. strengths: in natural scales of the mean difference at the layer. kl_coefficient: 0 trains without
    neutral texts."""

    steps: int = 100
    batch: int = 4
    learning_rate: float = 0.1
    strengths: tuple[float, float] = (0.25, 1.0)
    kl_coefficient: float = 1.0


async def train(
    engine: Engine,
    request: ExtractionRequest,
    settings: TrainingSettings | None = None,
    *,
    progress: Progress = ignore_progress,
) -> ConceptVector:
    """Returns a vector with its card, not yet stored. layers "all": the layer where the mean difference reads best; explicit
    layers are trained one after the other. `request.method` is ignored.

    Only the pairs that are not held out are trained on. Cancelling stops within one piece of the fit. Raises
    InvalidRequest for what `extract` refuses, for unpaired texts, and where training reverses the direction against its
    poles; also what `Engine.fit` raises.
    """
    chosen = settings or TrainingSettings()
    request = replace(request, method=TRAINED)
    check_name(request.name)
    check_position(request.position)
    check_pairs(request.pairs.paired)
    layers = layer_indices(request.layers, engine.info.layer_count)
    division = split(request.pairs, request.holdout, request.seed)
    reading = 2 * len(request.pairs) + len(layers)
    total = reading + chosen.steps * (1 if request.layers == "all" else len(layers))
    read = await read_pairs(engine, request, layers, total, progress)
    folds = await run_in_thread(_training_folds, request, division)
    starts, left_out = await fit_layers(METHODS[START].fit, read, request, folds, part=division.fit_positive)
    pairs = await run_in_thread(token_pairs, engine, request.pairs, division.fit_positive)
    progress(reading, total, "writing neutral answers")
    neutral = await neutral_texts(engine, request.seed) if chosen.kl_coefficient > 0.0 else ()
    fitted: dict[int, FittedDirection] = {}
    to_train = tuple(starts) if request.layers != "all" else (_best_start(engine, starts),)
    for layer in to_train:
        start = starts[layer].direction
        task = FitTask(
            pairs=pairs,
            layer=layer,
            amount=start.scale,
            neutral=neutral,
            initial=start.direction,
            seed=request.seed,
            **asdict(chosen),
        )
        done = reading + chosen.steps * len(fitted)
        fitted[layer] = await _fit(engine, task, progress_of_part(progress, done, total))
    notes = notes_of(engine, request, left_out) + _untrained(len(division.fit_positive), len(pairs))
    vector = await run_in_thread(_vector, engine, request, chosen, read, division, starts, fitted, notes)
    progress(total, total, "done")
    return vector


def _untrained(given: int, trained: int) -> list[str]:
    """Returns what the card says of pairs that `token_pairs` left out."""
    reason = "left out of the training, because the two texts are equal to the model or one token long"
    return [f"{reason}: {given - trained} of {given} pairs"] if trained < given else []


async def _fit(engine: Engine, task: FitTask, progress: Progress) -> FittedDirection:
    message = f"training layer {task.layer}"
    progress(0, task.steps, message)
    return await fitting_of(engine).fit(task, progress=lambda done, steps: progress(done, steps, message))


def check_pairs(paired: bool) -> None:
    """Raises InvalidRequest for unpaired texts."""
    if not paired:
        raise InvalidRequest(
            f"method {TRAINED!r} needs pairs, got separate lists of positive and negative texts", param="method"
        )


def _training_folds(request: ExtractionRequest, division: Split) -> Folding:
    """Divides the pairs that are trained on, so that the held-out pairs have no say in the choice of a layer."""
    part, pairs = division.fit_positive, request.pairs
    topics = tuple(pairs.topics[i] for i in part) if pairs.topics else ()
    kept = PairSet(tuple(pairs.positive[i] for i in part), tuple(pairs.negative[i] for i in part), topics)
    return folding(kept, request.holdout, request.seed)


def _best_start(engine: Engine, starts: Mapping[int, LayerFit]) -> int:
    return best_layer({layer: fit.quality for layer, fit in starts.items()}, engine.info.layer_count)


def _vector(
    engine: Engine,
    request: ExtractionRequest,
    settings: TrainingSettings,
    read: ReadPairs,
    division: Split,
    starts: Mapping[int, LayerFit],
    fitted: Mapping[int, FittedDirection],
    notes: list[str],
) -> ConceptVector:
    """Builds the vector. Scales and card come from the class means, as for every method; strengths to try from the training.

    starts, fitted: the initial direction of each layer, and the fitted one of those that were trained.
    """
    starts = {layer: starts[layer] for layer in fitted}
    held = folding_of(request.pairs, ((division,),) if division.held_positive else ())
    fits = {
        layer: _measured(found, layer, *read.at(layer), division, held, request.seed) for layer, found in fitted.items()
    }
    layer = _best_start(engine, starts)
    quality = fits[layer].quality
    auroc = None if quality.auroc is None else Estimate(quality.auroc, quality.auroc_interval)
    provenance = {**provenance_of(engine, request), "training": _training(settings, starts, fitted)}
    vector = assembled(engine.info, request, fits, auroc, held, notes, provenance)
    assert vector.quality is not None, "assembled with a card"
    ratio = starts[layer].direction.scale / fits[layer].direction.scale
    low, high = settings.strengths
    strengths = None if vector.quality.at_chance else (low * ratio, high * ratio)
    return replace(vector, recommended=Recommended((layer,), strengths_to_try=strengths, basis="card"))


def _measured(
    found: FittedDirection,
    layer: int,
    positive: Positives,
    negative: Negatives,
    division: Split,
    held: Folding,
    seed: int,
) -> LayerFit:
    """Adds the class means of the fitted pairs to a trained direction and measures it on the held-out pairs.

    The trained sign is kept: flipping it would reverse the effect. positive, negative: activations of all pairs.
    """
    direction = orient(found.direction, positive[list(division.fit_positive)], negative[list(division.fit_negative)])
    if float(direction.direction @ found.direction) < 0.0:
        raise InvalidRequest(
            f"at layer {layer} the trained direction makes the positive texts more likely but reads the poles reversed; "
            "train fewer steps, at another layer, or on more pairs",
            param="layers",
        )
    return fit_layer(lambda *_: direction, positive, negative, True, held, seed)


def _training(
    settings: TrainingSettings, starts: Mapping[int, LayerFit], fitted: Mapping[int, FittedDirection]
) -> dict[str, Any]:
    return {
        **asdict(settings),
        "strengths": list(settings.strengths),
        "amount": {str(layer): start.direction.scale for layer, start in starts.items()},
        "cosine_to_start": {
            str(layer): float(found.direction @ starts[layer].direction.direction) for layer, found in fitted.items()
        },
        "loss": {str(layer): [found.losses[0], found.losses[-1]] for layer, found in fitted.items()},
    }
