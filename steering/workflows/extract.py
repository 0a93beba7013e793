"""Makes vectors: extracted or trained from contrasting texts, from given numbers, or from other vectors.

Training fits a direction by gradient through the model: added with a positive strength it should make the positive
texts more likely, with a negative one less, as in BiPO (arXiv 2406.00045), RePS (2505.20809) and ReFT-r1 (2404.03592).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import torch

from steering.auroc import HeldOut, estimate_auroc
from steering.cards import Estimate, Recommended
from steering.engine.api import (
    Capture,
    CaptureSpec,
    Engine,
    FitTask,
    FittedDirection,
    Position,
    Prompt,
    TokenPair,
    TrainingSettings,
)
from steering.engine.capabilities import can_fit, fitting_of
from steering.engine.prompts import check_fitted
from steering.errors import InvalidRequest
from steering.extraction import METHODS
from steering.extraction.base import MeanDifference, Negatives, Positives, orient
from steering.extraction.card import best_layer, build_card, recommend, strengths_to_try
from steering.extraction.cross_validation import (
    Fit,
    Folding,
    LayerFit,
    chosen_layers,
    fit_layer,
    folding,
    folding_of,
    nested_auroc,
)
from steering.extraction.subjects import MOST_TEXTS, with_subjects
from steering.layer_indices import layer_indices
from steering.maps import LowRankMap
from steering.model.info import ModelInfo
from steering.pairs import PairSet, Split, Text, dataset_digest, groups_of, split
from steering.plan.resolve import given_layers
from steering.registry import unknown_name
from steering.schemas.messages import position_as_json
from steering.shapes import Float, Tensor
from steering.spec import PhaseName
from steering.threads import run_in_thread
from steering.vectors import ConceptVector, check_name, combine
from steering.workflows.generate import Progress, ignore_progress, progress_of_part
from steering.workflows.readout import chosen_phases, read_each, spoken
from steering.workflows.texts import as_answers, capture_prompts, neutral_texts, subset, token_pairs

TRAINED = "trained"
"""The name of the method that trains, in addition to those of METHODS."""
METHOD_NAMES = (*METHODS, TRAINED)
"""Every value that `method` accepts."""
START = MeanDifference.name
"""The method that initializes the training and whose natural scale its strengths are multiples of."""


@dataclass(frozen=True, slots=True)
class ExtractionRequest:
    """What to extract and how. layers: block indices, negative from the top. position: of each text, not "all".
    phase: the mean over tokens in these phases is read instead, of conversations that end with an answer.
    holdout: share of the topics that each fold holds out. notes: warnings of the card about the pairs.
    card_max: whether the card has the AUROC of the largest score over the tokens, see QualityCard."""

    name: str
    pairs: PairSet
    method: str = START
    layers: Literal["all"] | tuple[int, ...] = "all"
    position: Position = "last"
    phase: tuple[PhaseName, ...] | None = None
    holdout: float = 0.3
    seed: int = 0
    description: str = ""
    tags: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    card_max: bool = False


ReadPairs: TypeAlias = Mapping[int, tuple[Positives, Negatives]]
"""The activations of both poles by layer, each (example, d_model) float32."""


def methods_of(engine: Engine) -> tuple[str, ...]:
    """Returns the names that `method` may have with this engine."""
    return METHOD_NAMES if can_fit(engine) else tuple(METHODS)


def check_method(
    engine: Engine,
    method: str,
    training: TrainingSettings | None = None,
    *,
    paired: bool = True,
    card_max: bool = False,
) -> None:
    """Raises InvalidRequest for an unknown method, training settings for another method, or unpaired texts or `card_max` for
    training; UnsupportedParameter for training with an engine that cannot fit directions."""
    if method not in METHOD_NAMES:
        raise InvalidRequest(unknown_name("method", method, METHOD_NAMES, "method"), param="method")
    if method == TRAINED:
        fitting_of(engine)
        _check_paired(paired)
        if card_max:
            raise InvalidRequest(
                f"'card_position' needs a method that is cross-validated, got {TRAINED!r}; use `steer test --position max`",
                param="card_position",
            )
    elif training is not None:
        raise InvalidRequest(f"'training' belongs to method {TRAINED!r}, not to {method!r}", param="training")


def _check_paired(paired: bool) -> None:
    if not paired:
        raise InvalidRequest(
            f"method {TRAINED!r} needs pairs, got separate lists of positive and negative texts", param="method"
        )


def check_position(position: Position) -> None:
    """Raises InvalidRequest for "all"."""
    if position == "all":
        raise InvalidRequest(
            "position 'all' gives many activations per text, but a vector needs one: 'last', 'mean', 'response_mean', "
            "an offset from the end such as -2, or a span",
            param="position",
        )


def tried_layers(layer_count: int) -> tuple[int, ...]:
    """Returns the layers to extract at where one is to be chosen: every second one of the middle of the model."""
    first = int(0.4 * layer_count)
    return tuple(range(first, max(int(0.8 * layer_count), first + 1), 2))


async def make_vector(
    engine: Engine,
    request: ExtractionRequest,
    *,
    training: TrainingSettings | None = None,
    progress: Progress = ignore_progress,
) -> ConceptVector:
    """Extracts or trains a vector, depending on the method; see `extract` and `train`."""
    check_method(engine, request.method, training, card_max=request.card_max)
    if request.method == TRAINED:
        return await train(engine, request, training, progress=progress)
    return await extract(engine, request, progress=progress)


async def extract(engine: Engine, request: ExtractionRequest, *, progress: Progress = ignore_progress) -> ConceptVector:
    """Returns a vector with its cross-validated card, not yet stored. Layers where the method finds no direction are
    left out. Cancelling stops the reading at once, the fitting at the next layer. Raises InvalidRequest for an
    invalid name, method, layer, position or holdout, and the method's own error when it finds nothing at any layer."""
    check_name(request.name)
    check_position(request.position)
    method = METHODS[request.method]
    layers = layer_indices(request.layers, engine.info.layer_count)
    notes, provenance = _notes(engine, request), _provenance(engine, request)
    grouped = await run_in_thread(with_subjects, request.pairs)
    if request.holdout:
        request = replace(request, pairs=grouped)
        notes += _about_subjects(grouped, provenance["topics"])
    division = await run_in_thread(folding, grouped, request.holdout, request.seed)
    texts = len(request.pairs.positive) + len(request.pairs.negative)
    total = texts * (2 if request.card_max else 1) + len(layers)
    read = await read_pairs(engine, request, layers, total, progress)
    fitting = progress_of_part(progress, texts, total)
    fits, left_out = await _fit_layers(method.fit, read, request, division, progress=fitting)
    kept: dict[str, float] = {}
    for layer, fit in list(fits.items()):
        try:
            made = await run_in_thread(method.fit_map, *read[layer], grouped.paired, fit.direction, division.groups)
        except InvalidRequest as error:
            left_out[layer] = error
            del fits[layer]
            continue
        if made is not None:
            fits[layer] = replace(fit, direction=replace(fit.direction, map=made[0]))
            kept[str(layer)] = made[1]
    if not fits:
        raise left_out[max(left_out)]
    auroc = await run_in_thread(nested_auroc, fits, engine.info.layer_count)
    provenance |= {"map": {"kept": kept}} if kept else {}
    notes += _about_layers(left_out)
    vector = assembled(engine.info, request, fits, auroc, division, notes, provenance)
    if request.card_max and vector.quality is not None:
        reading = progress_of_part(progress, texts + len(layers), total)
        found = await _max_auroc(engine, request.pairs, fits, division, reading)
        if found is not None:
            card = replace(vector.quality, max_auroc=found.mean, max_auroc_interval=found.interval)
            vector = replace(vector, quality=card)
    progress(total, total, "done")
    return vector


async def _max_auroc(
    engine: Engine, pairs: PairSet, fits: Mapping[int, LayerFit], division: Folding, progress: Progress
) -> Estimate | None:
    """Estimates the AUROC of the whole procedure where the score of a held-out text is the largest over its tokens without the
    first. All texts are read again, at the layers that `nested_auroc` chooses. None where too few are held out."""
    places = [
        (repeat, fold, layer, direction)
        for repeat, row in enumerate(chosen_layers(fits, engine.info.layer_count))
        for fold, layer in enumerate(row)
        if (direction := fits[layer].directions[repeat][fold]) is not None
    ]
    layers, texts = tuple(sorted({layer for _, _, layer, _ in places})), pairs.positive + pairs.negative
    if not places:
        return None

    def largest(_: Prompt, capture: Capture) -> list[float]:
        residuals = dict(zip(layers, capture.activations.float(), strict=True))
        return [float(spoken(residuals[layer] @ direction.float()).max()) for _, _, layer, direction in places]

    prompts = [one.prompt for one in await run_in_thread(capture_prompts, engine, texts)]

    def report(done: int) -> None:
        progress(done, len(texts), "reading every token")

    scores = np.array(await read_each(engine, prompts, layers, largest, priority=1, done=report))
    splits: list[list[HeldOut]] = [[] for _ in division.splits]
    for column, (repeat, fold, _, _) in zip(scores.T, places, strict=True):
        held = division.splits[repeat][fold]
        negative = column[len(pairs.positive) :][list(held.held_negative)]
        splits[repeat].append(HeldOut(column[list(held.held_positive)], negative, *division.groups_in(held)))
    return estimate_auroc(splits)


def trained_pairs(engine: Engine, request: ExtractionRequest) -> tuple[TokenPair, ...]:
    """Returns the pairs that are not held out, in tokens. Raises what `token_pairs` and `check_fitted` raise."""
    part = split(request.pairs, request.holdout, request.seed).fit_positive
    found = token_pairs(engine, request.pairs, part)
    check_fitted(found, (), engine.info)
    return found


async def train(
    engine: Engine,
    request: ExtractionRequest,
    settings: TrainingSettings | None = None,
    *,
    progress: Progress = ignore_progress,
) -> ConceptVector:
    """Returns a vector with its card, not yet stored, trained on the pairs that are not held out; layers "all": where
    the mean difference reads best. Cancelling stops within one piece of the fit. Raises InvalidRequest for what
    `extract` refuses, unpaired texts and a direction that training reverses; also what `SupportsFitting.fit` raises."""
    chosen, pairs = settings or TrainingSettings(), request.pairs
    request = replace(request, method=TRAINED)
    check_name(request.name)
    check_position(request.position)
    _check_paired(pairs.paired)
    layers = layer_indices(request.layers, engine.info.layer_count)
    division = split(pairs, request.holdout, request.seed)
    part = division.fit_positive
    reading = 2 * len(pairs) + len(layers)
    total = reading + chosen.steps * (1 if request.layers == "all" else len(layers))
    read = await read_pairs(engine, request, layers, total, progress)
    # folds of the pairs that are trained on, so that the held-out pairs have no say in the choice of a layer
    folds = await run_in_thread(lambda: folding(subset(pairs, part), request.holdout, request.seed))
    starts, left_out = await _fit_layers(METHODS[START].fit, read, request, folds, part=part)
    encoded = await run_in_thread(trained_pairs, engine, request)
    progress(reading, total, "writing neutral answers")
    neutral = await neutral_texts(engine, request.seed) if chosen.kl_coefficient > 0.0 else ()
    fitted: dict[int, FittedDirection] = {}
    for layer in tuple(starts) if request.layers != "all" else (_best(engine, starts),):
        start = starts[layer].direction
        task = FitTask(
            pairs=encoded,
            layer=layer,
            amount=start.scale,
            neutral=neutral,
            initial=start.direction,
            seed=request.seed,
            **asdict(chosen),
        )
        fitted[layer] = await _trained(
            engine, task, progress_of_part(progress, reading + chosen.steps * len(fitted), total)
        )
    notes = _notes(engine, request) + _about_layers(left_out)
    if len(encoded) < len(part):
        reason = "left out of the training, because the two texts are equal to the model or one token long"
        notes.append(f"{reason}: {len(part) - len(encoded)} of {len(part)} pairs")

    def built() -> ConceptVector:
        held = folding_of(request.pairs, ((division,),) if division.held_positive else ())
        fits = {layer: _measured(found, layer, read, division, held, request.seed) for layer, found in fitted.items()}
        layer = _best(engine, {at: starts[at] for at in fitted})
        quality = fits[layer].quality
        auroc = None if quality.auroc is None else Estimate(quality.auroc, quality.auroc_interval)
        initial = {at: starts[at].direction for at in fitted}
        training = {
            **asdict(chosen),
            "strengths": list(chosen.strengths),
            "amount": {str(at): start.scale for at, start in initial.items()},
            "cosine_to_start": {str(at): float(one.direction @ initial[at].direction) for at, one in fitted.items()},
            "loss": {str(at): [one.losses[0], one.losses[-1]] for at, one in fitted.items()},
        }
        provenance = {**_provenance(engine, request), "training": training}
        vector = assembled(engine.info, request, fits, auroc, held, notes, provenance)
        assert vector.quality is not None, "assembled with a card"
        ratio = initial[layer].scale / fits[layer].direction.scale
        low, high = chosen.strengths
        strengths = None if vector.quality.at_chance else (low * ratio, high * ratio)
        return replace(vector, recommended=Recommended((layer,), strengths_to_try=strengths, basis="card"))

    vector = await run_in_thread(built)
    progress(total, total, "done")
    return vector


async def _trained(engine: Engine, task: FitTask, progress: Progress) -> FittedDirection:
    message = f"training layer {task.layer}"
    progress(0, task.steps, message)
    return await fitting_of(engine).fit(task, progress=lambda done, steps: progress(done, steps, message))


def _best(engine: Engine, fits: Mapping[int, LayerFit]) -> int:
    return best_layer({layer: fit.quality for layer, fit in fits.items()}, engine.info.layer_count)


def _measured(
    found: FittedDirection, layer: int, read: ReadPairs, division: Split, held: Folding, seed: int
) -> LayerFit:
    """Adds class means to a trained direction, whose sign is kept, and measures it on the held-out pairs."""
    positive, negative = read[layer]
    direction = orient(found.direction, positive[list(division.fit_positive)], negative[list(division.fit_negative)])
    if float(direction.direction @ found.direction) < 0.0:
        raise InvalidRequest(
            f"at layer {layer} the trained direction makes the positive texts more likely but reads the poles reversed; "
            "train fewer steps, at another layer, or on more pairs",
            param="layers",
        )
    return fit_layer(lambda *_: direction, positive, negative, True, held, seed)


async def _fit_layers(
    fit: Fit,
    read: ReadPairs,
    request: ExtractionRequest,
    division: Folding,
    *,
    part: Sequence[int] | None = None,
    progress: Progress = ignore_progress,
) -> tuple[dict[int, LayerFit], dict[int, InvalidRequest]]:
    """Fits and cross-validates layers, at `part` of the pairs; also returns, or raises, why there is no direction."""
    rows = slice(None) if part is None else list(part)

    def fit_at(layer: int) -> LayerFit:
        positive, negative = read[layer]
        return fit_layer(fit, positive[rows], negative[rows], request.pairs.paired, division, request.seed)

    fits: dict[int, LayerFit] = {}
    left_out: dict[int, InvalidRequest] = {}
    for done, layer in enumerate(read):
        progress(done, len(read), f"fitting layer {layer}")
        try:
            fits[layer] = await run_in_thread(fit_at, layer)
        except InvalidRequest as error:
            left_out[layer] = error
    if not fits:
        raise left_out[max(read)]
    return fits, left_out


async def read_pairs(
    engine: Engine, request: ExtractionRequest, layers: tuple[int, ...], total: int, progress: Progress
) -> ReadPairs:
    """Reads each different text once, plain ones as replies for "response_mean". Raises what `chosen_phases` raises."""
    positive, negative = request.pairs.positive, request.pairs.negative
    if request.position == "response_mean":
        positive, negative = as_answers(positive), as_answers(negative)
    rows: Mapping[Text, int] = {text: i for i, text in enumerate(dict.fromkeys(positive + negative))}
    repeated = len(positive) + len(negative) - len(rows)

    def report(done: int, _: int = 0) -> None:
        progress(done + repeated, total, "reading texts")

    if request.phase is None:
        prompts, spec = await run_in_thread(capture_prompts, engine, tuple(rows)), CaptureSpec(layers, request.position)
        found = [capture.activations.float() for capture in await engine.capture(prompts, spec, progress=report)]
    else:
        chosen = await run_in_thread(chosen_phases, engine.tokenizer, tuple(rows), request.phase)

        def mean(text: Prompt, capture: Capture) -> Float[Tensor, "layer 1 d_model"]:
            positions = chosen[rows[cast(Text, text)]].positions
            return capture.activations[:, list(positions)].float().mean(dim=1, keepdim=True)

        found = await read_each(engine, tuple(rows), layers, mean, priority=1, done=report)
    activations = torch.cat(found, dim=1)
    upper, lower = (activations[:, [rows[text] for text in side]] for side in (positive, negative))
    return {layer: (upper[index], lower[index]) for index, layer in enumerate(layers)}


def assembled(
    info: ModelInfo,
    request: ExtractionRequest,
    fits: Mapping[int, LayerFit],
    auroc: Estimate | None,
    division: Folding,
    notes: Sequence[str],
    provenance: Mapping[str, Any],
) -> ConceptVector:
    """Builds the vector and its card. auroc: of the whole procedure. division: what was held out. notes: warnings."""
    pairs = request.pairs
    card = build_card(
        {layer: fit.quality for layer, fit in fits.items()},
        layer_count=info.layer_count,
        pairs=min(len(pairs.positive), len(pairs.negative)),
        holdout=division.holdout,
        folds=division.folds,
        topics=min(len(set(one)) for one in groups_of(pairs)),
        auroc=auroc,
    )
    card = replace(card, warnings=(*card.warnings, *notes))
    scales = {layer: fit.direction.scale for layer, fit in fits.items()}
    layers = {layer: fit.direction for layer, fit in fits.items()}
    of = info.name, info.fingerprint, info.d_model
    return ConceptVector(
        request.name,
        *of,
        request.method,
        layers,
        description=request.description,
        tags=request.tags,
        recommended=recommend(card, info.layer_count, scales, info.typical_norms),
        quality=card,
        provenance=provenance,
    )


def _notes(engine: Engine, request: ExtractionRequest) -> list[str]:
    """Returns what a card says of the pairs and of how the texts were read."""
    if _text_form(engine, request) == "transcript":
        return [*request.notes, "conversations were read as a plain transcript, because the model has no chat template"]
    return [*request.notes]


def _about_layers(left_out: Mapping[int, InvalidRequest]) -> list[str]:
    """Returns what a card says of layers without a direction."""
    if not left_out:
        return []
    first = next(iter(left_out.values()))
    layers = ", ".join(str(layer) for layer in left_out)
    return [f"left out, because the method found no direction there: layer {layers} ({first.message})"]


def _about_subjects(pairs: PairSet, topics: int) -> list[str]:
    """Returns what a card says of lists whose caller named no topics."""
    if pairs.paired or topics:
        return []
    if not pairs.topics:
        return [
            f"no topics were named, and more than {MOST_TEXTS} texts are not compared: each counts as a subject of its own"
        ]
    subjects = len({*pairs.topics, *pairs.negative_topics})
    return [
        f"no topics were named: texts that share rare words count as one subject ({subjects} subjects); where texts of one subject "
        "share none, the figures may not hold for other subjects"
    ]


def _text_form(engine: Engine, request: ExtractionRequest) -> str:
    """Returns how the texts were written for the model: "plain", "chat_template" or "transcript"."""
    plain = all(isinstance(text, str) for text in (*request.pairs.positive, *request.pairs.negative))
    if plain and request.position != "response_mean":
        return "plain"
    return "chat_template" if engine.info.chat_template else "transcript"


def _provenance(engine: Engine, request: ExtractionRequest) -> dict[str, Any]:
    """Returns what it takes to make the same vector again."""
    pairs, info, position = request.pairs, engine.info, request.position
    return {
        "method": request.method,
        "position": position_as_json(position),
        **({"phase": list(request.phase)} if request.phase else {}),
        "text_form": _text_form(engine, request),
        "seed": request.seed,
        "holdout": request.holdout,
        "dataset": dataset_digest(pairs),
        "paired": pairs.paired,
        "positives": len(pairs.positive),
        "negatives": len(pairs.negative),
        "topics": len({*pairs.topics, *pairs.negative_topics}),
        "model": info.name,
        "model_revision": info.revision,
        "dtype": info.dtype,
    }


def registered(
    info: ModelInfo,
    name: str,
    directions: Mapping[str, Sequence[float]],
    scale: Mapping[str, float] | None = None,
    description: str = "",
    tags: tuple[str, ...] = (),
    maps: Mapping[str, LowRankMap] | None = None,
) -> ConceptVector:
    """Builds a vector of the loaded model from numbers by layer. Raises what `given_layers` raises."""
    layers = given_layers(info, directions, scale, maps)
    vector = ConceptVector(
        name, info.name, info.fingerprint, info.d_model, "given", layers, description=description, tags=tags
    )
    return with_recommendation(vector, info)


def combined(
    info: ModelInfo,
    name: str,
    terms: Sequence[tuple[ConceptVector, float]],
    orthogonal_to: Sequence[ConceptVector] = (),
    description: str = "",
    tags: tuple[str, ...] = (),
) -> ConceptVector:
    """Builds a weighted sum of vectors (see `vectors.combine`) with its own description and tags."""
    vector = replace(combine(name, terms, orthogonal_to), description=description, tags=tags)
    return with_recommendation(vector, info)


def with_recommendation(vector: ConceptVector, info: ModelInfo) -> ConceptVector:
    """Adds strengths to try from the vector's scale and the model's typical norms, where none are recommended."""
    if vector.recommended is not None:
        return vector
    scales, layers = {layer: entry.scale for layer, entry in vector.layers.items()}, vector.recommended_layers()
    strengths = strengths_to_try(layers, scales, info.typical_norms)
    return replace(vector, recommended=Recommended(layers, strengths_to_try=strengths, basis="norms"))
