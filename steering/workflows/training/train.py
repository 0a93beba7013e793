"""Trains a direction by gradient descent against the frozen model, then measures it on held-out topics like any other.

Rank-1 preference training as in BiPO (arXiv 2406.00045), RePS (2505.20809) and ReFT-r1 (2404.03592).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from steering.auroc import MIN_HELD
from steering.engine.api import Engine
from steering.engine.capabilities import fitting_of
from steering.engine.fit_task import FitTask, FittedDirection
from steering.errors import InvalidRequest
from steering.extraction import METHODS
from steering.extraction.base import orient
from steering.extraction.card import best_layer
from steering.extraction.cross_validation import (
    LayerFit,
    fit_layer,
    folding,
    held_out,
    layer_quality,
    pair_agreement,
    random_auroc,
)
from steering.layer_indices import layer_indices
from steering.pairs import PairSet, Split, split
from steering.quality import Estimate, LayerQuality, Recommended
from steering.threads import run_in_thread
from steering.vectors import ConceptVector, LayerDirection, check_name
from steering.workflows.extraction.extract import (
    ExtractionRequest,
    Measured,
    ReadPairs,
    assembled,
    check_position,
    notes_of,
    provenance_of,
    read_pairs,
)
from steering.workflows.extraction.texts import neutral_texts, token_pairs
from steering.workflows.progress import Progress, ignore_progress

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


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """The initial and the fitted direction at one layer."""

    start: LayerFit
    fitted: FittedDirection


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
    starts, left_out = await run_in_thread(_starts, request, layers, read, division)
    pairs = await run_in_thread(token_pairs, engine, request.pairs, division.fit_positive)
    progress(reading, total, "writing neutral answers")
    neutral = await neutral_texts(engine, request.seed) if chosen.kl_coefficient > 0.0 else ()
    trained: dict[int, _Layer] = {}
    to_train = tuple(starts) if request.layers != "all" else (_best_start(engine, starts),)
    for layer in to_train:
        start, done = starts[layer].direction, reading + chosen.steps * len(trained)
        message = f"training layer {layer}"
        progress(done, total, message)
        fitted = await fitting_of(engine).fit(
            FitTask(
                pairs=pairs,
                layer=layer,
                amount=start.scale,
                neutral=neutral,
                initial=start.direction,
                seed=request.seed,
                **asdict(chosen),
            ),
            progress=lambda steps, _, done=done, message=message: progress(done + steps, total, message),  # type: ignore[misc]
        )
        trained[layer] = _Layer(starts[layer], fitted)
    vector = await run_in_thread(_vector, engine, request, chosen, layers, read, division, trained, left_out)
    progress(total, total, "done")
    return vector


def check_pairs(paired: bool) -> None:
    """Raises InvalidRequest for unpaired texts."""
    if not paired:
        raise InvalidRequest(
            f"method {TRAINED!r} needs pairs, got separate lists of positive and negative texts", param="method"
        )


def _starts(
    request: ExtractionRequest, layers: tuple[int, ...], read: ReadPairs, division: Split
) -> tuple[dict[int, LayerFit], dict[int, InvalidRequest]]:
    """Fits the mean difference at each layer on the training part and cross-validates it there, so that the held-out part has
    no say in the choice of a layer; also returns layers without a direction, with the reason."""
    chosen, pairs = list(division.fit_positive), request.pairs
    topics = tuple(pairs.topics[index] for index in chosen) if pairs.topics else ()
    part = PairSet(tuple(pairs.positive[i] for i in chosen), tuple(pairs.negative[i] for i in chosen), topics)
    folds = folding(part, request.holdout, request.seed)
    fits: dict[int, LayerFit] = {}
    left_out: dict[int, InvalidRequest] = {}
    for index, layer in enumerate(layers):
        at_layer = read.positive[index][chosen], read.negative[index][chosen]
        try:
            fits[layer] = fit_layer(METHODS[START].fit, *at_layer, True, folds, request.seed)
        except InvalidRequest as error:
            left_out[layer] = error
    if not fits:
        raise left_out[layers[-1]]
    return fits, left_out


def _best_start(engine: Engine, starts: Mapping[int, LayerFit]) -> int:
    return best_layer({layer: fit.quality for layer, fit in starts.items()}, engine.info.layer_count)


def _vector(
    engine: Engine,
    request: ExtractionRequest,
    settings: TrainingSettings,
    layers: tuple[int, ...],
    read: ReadPairs,
    division: Split,
    trained: Mapping[int, _Layer],
    left_out: Mapping[int, InvalidRequest],
) -> ConceptVector:
    """Builds the vector. Scales and card come from the class means, as for every method; strengths to try from the training."""
    directions: dict[int, LayerDirection] = {}
    quality: dict[int, LayerQuality] = {}
    for layer, found in trained.items():
        positive, negative = (rows[layers.index(layer)] for rows in (read.positive, read.negative))
        fitted = positive[list(division.fit_positive)], negative[list(division.fit_negative)]
        directions[layer] = _oriented(found, *fitted, layer)
        quality[layer] = _held_out_quality(directions[layer], positive, negative, request, division)
    layer = _best_start(engine, {layer: found.start for layer, found in trained.items()})
    chosen = quality[layer]
    auroc = None if chosen.auroc is None else Estimate(chosen.auroc, chosen.auroc_interval)
    measured = Measured(quality, auroc, len(division.held_positive), folds=1 if division.held_positive else 0)
    notes, provenance = notes_of(engine, request, left_out), provenance_of(engine, request)
    vector = assembled(
        engine.info, request, directions, measured, notes, {**provenance, **_training(settings, trained)}
    )
    assert vector.quality is not None, "assembled with a card"
    ratio = trained[layer].start.direction.scale / directions[layer].scale
    low, high = settings.strengths
    strengths = None if vector.quality.at_chance else (low * ratio, high * ratio)
    return replace(vector, recommended=Recommended((layer,), strengths_to_try=strengths, basis="card"))


def _held_out_quality(
    direction: LayerDirection, positive: Any, negative: Any, request: ExtractionRequest, division: Split
) -> LayerQuality:
    """Measures a trained direction on the held-out pairs. positive, negative: activations (pair, d_model) of all pairs."""
    held = list(division.held_positive)
    agreement = pair_agreement(positive - negative)
    if len(held) < MIN_HELD:
        return LayerQuality(pair_agreement=agreement)
    fitted, pairs = list(division.fit_positive), request.pairs
    groups = np.unique([pairs.topics[i] if pairs.topics else str(i) for i in held], return_inverse=True)[1]
    shift = (positive[fitted].double().mean(0) - negative[fitted].double().mean(0)).float()
    control = random_auroc(shift, positive[held], negative[held], request.seed)
    part = held_out(direction.direction, positive[held], negative[held], groups, groups)
    return layer_quality([[part]], agreement, [control])


def _oriented(found: _Layer, positive: Any, negative: Any, layer: int) -> LayerDirection:
    """Adds class means to the fitted direction. Keeps the trained sign: flipping it would reverse the effect."""
    direction = orient(found.fitted.direction, positive, negative)
    if float(direction.direction @ found.fitted.direction) < 0.0:
        raise InvalidRequest(
            f"at layer {layer} the trained direction makes the positive texts more likely but reads the poles reversed; "
            "train fewer steps, at another layer, or on more pairs",
            param="layers",
        )
    return direction


def _training(settings: TrainingSettings, trained: Mapping[int, _Layer]) -> dict[str, Any]:
    return {
        "training": {
            **asdict(settings),
            "strengths": list(settings.strengths),
            "amount": {str(layer): found.start.direction.scale for layer, found in trained.items()},
            "cosine_to_start": {
                str(layer): float(found.fitted.direction @ found.start.direction.direction)
                for layer, found in trained.items()
            },
            "loss": {str(layer): [found.fitted.losses[0], found.fitted.losses[-1]] for layer, found in trained.items()},
        }
    }
