"""From contrasting texts to a ConceptVector: read every text once, fit a direction per layer, prove it on held-out topics."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch

from steering.engine.api import CapturePrompt, CaptureSpec, Engine, Position
from steering.errors import InvalidRequest
from steering.extraction import METHODS, ExtractionMethod
from steering.extraction.card import build_card, recommend
from steering.extraction.quality import measure_layer
from steering.layer_indices import layer_indices
from steering.pairs import PairSet, Split, Text, dataset_digest, split
from steering.quality import LayerQuality
from steering.shapes import Activations, Float, Tensor
from steering.threads import run_in_thread
from steering.vectors import ConceptVector, LayerDirection, check_name
from steering.workflows.extraction.texts import as_answers
from steering.workflows.progress import Progress, ignore_progress

Fits: TypeAlias = dict[int, tuple[LayerDirection, LayerQuality]]


@dataclass(frozen=True, slots=True)
class ExtractionRequest:
    """What to make a vector of, and how. layers: block indices, negative from the top. holdout: share of topics kept
    from the fit. position: which activation of each text is read; "all" is none."""

    name: str
    pairs: PairSet
    method: str = "mean_difference"
    layers: Literal["all"] | tuple[int, ...] = "all"
    position: Position = "last"
    holdout: float = 0.3
    seed: int = 0
    description: str = ""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class ReadPairs:
    """Activations of both poles at the layers read, each (layer, example, d_model) float32."""

    positive: Float[Tensor, "layer pos d_model"]
    negative: Float[Tensor, "layer neg d_model"]


async def extract(engine: Engine, request: ExtractionRequest, *, progress: Progress | None = None) -> ConceptVector:
    """A vector with its card, not yet stored. Cancelling stops the reading at once, the fitting at the next layer.

    Layers where the method finds no direction are left out, and the card says so. Raises InvalidRequest for a name,
    method, layer, position or share that cannot be, and the method's own error when it finds nothing at any layer.
    """
    report = progress or ignore_progress
    method = _check(request)
    layers = layer_indices(request.layers, engine.info.layer_count)
    division = split(request.pairs, request.holdout, request.seed)
    total = len(request.pairs.positive) + len(request.pairs.negative) + len(layers)
    read = await read_pairs(engine, request, layers, total, report)
    fits: Fits = {}
    left_out: dict[int, InvalidRequest] = {}
    for index, layer in enumerate(layers):
        report(total - len(layers) + index, total, f"fitting layer {layer}")
        at_layer = read.positive[index], read.negative[index]
        try:
            fits[layer] = await run_in_thread(fit_layer, method, *at_layer, request.pairs, division, request.seed)
        except InvalidRequest as error:
            left_out[layer] = error
    if not fits:
        raise left_out[layers[-1]]
    report(total, total, "done")
    return assembled(engine, request, division, fits, left_out)


def _check(request: ExtractionRequest) -> type[ExtractionMethod]:
    check_name(request.name)
    method = METHODS[request.method]
    check_position(request.position)
    return method


def check_position(position: Position) -> None:
    """Raises InvalidRequest for "all"."""
    if position == "all":
        raise InvalidRequest(
            "position 'all' gives many activations a text; a vector is made of one: 'last', 'mean', 'response_mean' "
            "or an offset from the end such as -2",
            param="position",
        )


async def read_pairs(
    engine: Engine, request: ExtractionRequest, layers: tuple[int, ...], total: int, report: Progress
) -> ReadPairs:
    """All texts, each different one once, all layers in one pass over them. Read as a whole answer, a text that stands
    alone is put as one."""
    positive, negative = request.pairs.positive, request.pairs.negative
    if request.position == "response_mean":
        positive, negative = as_answers(positive, engine.info), as_answers(negative, engine.info)
    rows: Mapping[Text, int] = {text: i for i, text in enumerate(dict.fromkeys(positive + negative))}
    repeated = len(positive) + len(negative) - len(rows)
    captures = await engine.capture(
        [CapturePrompt(text) for text in rows],
        CaptureSpec(layers=layers, position=request.position),
        progress=lambda done, _: report(done + repeated, total, "reading texts"),
    )
    activations = torch.cat([capture.activations.float() for capture in captures], dim=1)
    return ReadPairs(
        positive=activations[:, [rows[text] for text in positive]],
        negative=activations[:, [rows[text] for text in negative]],
    )


def fit_layer(
    method: type[ExtractionMethod],
    positive: Float[Tensor, "pos d_model"],
    negative: Float[Tensor, "neg d_model"],
    pairs: PairSet,
    division: Split,
    seed: int,
) -> tuple[LayerDirection, LayerQuality]:
    """One layer: the direction from the fitted part, its quality from the held-out part.

    positive (pos, d_model), negative (neg, d_model): every text, in the order of `pairs`. Raises InvalidRequest where
    the method finds nothing.
    """
    fitted = positive[list(division.fit_positive)], negative[list(division.fit_negative)]
    direction = method.fit(*fitted, pairs.paired)
    return direction, proved(direction, positive, negative, pairs, division, seed)


def proved(
    direction: LayerDirection,
    positive: Float[Tensor, "pos d_model"],
    negative: Float[Tensor, "neg d_model"],
    pairs: PairSet,
    division: Split,
    seed: int,
) -> LayerQuality:
    """What the held-out part of every text's activations, in the order of `pairs`, says of a direction."""
    held_topics = [pairs.topics[i] for i in division.held_positive] if pairs.paired and pairs.topics else None
    return measure_layer(
        direction.direction,
        positive[list(division.held_positive)],
        negative[list(division.held_negative)],
        differences=positive - negative if pairs.paired else None,
        fit_shift=_mean(positive[list(division.fit_positive)]) - _mean(negative[list(division.fit_negative)]),
        topics=held_topics,
        seed=seed,
    )


def _mean(activations: Activations) -> Float[Tensor, "d_model"]:
    return activations.double().mean(0).float()


def assembled(
    engine: Engine, request: ExtractionRequest, division: Split, fits: Fits, left_out: Mapping[int, InvalidRequest]
) -> ConceptVector:
    """The vector, its card and its provenance, from what was found and measured layer by layer."""
    info, pairs = engine.info, request.pairs
    held = min(len(division.held_positive), len(division.held_negative))
    topics = {pairs.topics[i] for i in division.held_positive} if pairs.topics else set(division.held_positive)
    card = build_card(
        {layer: quality for layer, (_, quality) in fits.items()},
        layer_count=info.layer_count,
        pairs=min(len(pairs.positive), len(pairs.negative)),
        holdout=held,
        held_topics=len(topics),
    )
    if left_out:
        card = replace(card, warnings=(*card.warnings, _said(left_out)))
    scales = {layer: direction.scale for layer, (direction, _) in fits.items()}
    return ConceptVector(
        name=request.name,
        model=info.name,
        model_fingerprint=info.fingerprint,
        d_model=info.d_model,
        method=request.method,
        layers={layer: direction for layer, (direction, _) in fits.items()},
        description=request.description,
        tags=request.tags,
        recommended=recommend(card, info.layer_count, scales, info.typical_norms),
        quality=card,
        provenance=_provenance(engine, request, division),
    )


def _said(left_out: Mapping[int, InvalidRequest]) -> str:
    first = next(iter(left_out.values()))
    layers = ", ".join(str(layer) for layer in left_out)
    return f"left out, because the method found no direction there: layer {layers} ({first.message})"


def _provenance(engine: Engine, request: ExtractionRequest, division: Split) -> dict[str, Any]:
    """What it takes to make the same vector again."""
    pairs = request.pairs
    return {
        "method": request.method,
        "position": request.position,
        "seed": request.seed,
        "holdout": request.holdout,
        "dataset": dataset_digest(pairs),
        "paired": pairs.paired,
        "positives": len(pairs.positive),
        "negatives": len(pairs.negative),
        "topics": len(set(pairs.topics)),
        "fitted": [len(division.fit_positive), len(division.fit_negative)],
        "model": engine.info.name,
        "model_revision": engine.info.revision,
        "dtype": engine.info.dtype,
    }
