"""Extracts a ConceptVector from contrasting texts: reads each text once, fits a direction per layer, cross-validates it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from steering.cards import Estimate
from steering.engine.api import CaptureSpec, Engine, Position
from steering.errors import InvalidRequest
from steering.extraction import METHODS
from steering.extraction.base import Negatives, Positives
from steering.extraction.card import build_card, recommend
from steering.extraction.cross_validation import Fit, Folding, LayerFit, fit_layer, folding, nested_auroc
from steering.layer_indices import layer_indices
from steering.model.info import ModelInfo
from steering.pairs import PairSet, Text, dataset_digest, groups_of
from steering.shapes import Float, Tensor
from steering.threads import run_in_thread
from steering.vectors import ConceptVector, check_name
from steering.workflows.generate import Progress, ignore_progress, progress_of_part
from steering.workflows.texts import as_answers, capture_prompts


@dataclass(frozen=True, slots=True)
class ExtractionRequest:
    """What to extract and how. layers: block indices, negative from the top. holdout: share of the topics that each fold of
    the cross-validation holds out. position: which activation of each text is read; "all" is not allowed. notes: warnings of
    the card about how the pairs were made."""

    name: str
    pairs: PairSet
    method: str = "mean_difference"
    layers: Literal["all"] | tuple[int, ...] = "all"
    position: Position = "last"
    holdout: float = 0.3
    seed: int = 0
    description: str = ""
    tags: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class ReadPairs:
    """Activations of both poles at the layers read, each (layer, example, d_model) float32."""

    layers: tuple[int, ...]
    positive: Float[Tensor, "layer pos d_model"]
    negative: Float[Tensor, "layer neg d_model"]

    def at(self, layer: int) -> tuple[Positives, Negatives]:
        """Returns the activations of both poles at one layer, each (example, d_model)."""
        index = self.layers.index(layer)
        return self.positive[index], self.negative[index]


async def extract(engine: Engine, request: ExtractionRequest, *, progress: Progress = ignore_progress) -> ConceptVector:
    """Returns a vector with its card, not yet stored. Cancelling stops the reading at once, the fitting at the next layer.

    The directions are fitted on all pairs; the card is cross-validated. Layers where the method finds no direction are left
    out, and the card says so. Raises InvalidRequest for an invalid name, method, layer, position or holdout, and the
    method's own error when it finds nothing at any layer.
    """
    check_name(request.name)
    check_position(request.position)
    method = METHODS[request.method]
    layers = layer_indices(request.layers, engine.info.layer_count)
    division = folding(request.pairs, request.holdout, request.seed)
    total = len(request.pairs.positive) + len(request.pairs.negative) + len(layers)
    read = await read_pairs(engine, request, layers, total, progress)
    fitting = progress_of_part(progress, total - len(layers), total)
    fits, left_out = await fit_layers(method.fit, read, request, division, progress=fitting)
    auroc = await run_in_thread(nested_auroc, fits, engine.info.layer_count)
    progress(total, total, "done")
    notes, provenance = notes_of(engine, request, left_out), provenance_of(engine, request)
    return assembled(engine.info, request, fits, auroc, division, notes, provenance)


async def fit_layers(
    fit: Fit,
    read: ReadPairs,
    request: ExtractionRequest,
    division: Folding,
    *,
    part: Sequence[int] | None = None,
    progress: Progress = ignore_progress,
) -> tuple[dict[int, LayerFit], dict[int, InvalidRequest]]:
    """Fits and cross-validates each layer. part: indices of the pairs that are used and that `division` divides; None: all.

    Returns the fits, and for the other layers why the method found no direction. Raises the last of these errors where
    it found none at any layer.
    """
    rows = slice(None) if part is None else list(part)

    def fit_at(layer: int) -> LayerFit:
        positive, negative = read.at(layer)
        return fit_layer(fit, positive[rows], negative[rows], request.pairs.paired, division, request.seed)

    fits: dict[int, LayerFit] = {}
    left_out: dict[int, InvalidRequest] = {}
    for done, layer in enumerate(read.layers):
        progress(done, len(read.layers), f"fitting layer {layer}")
        try:
            fits[layer] = await run_in_thread(fit_at, layer)
        except InvalidRequest as error:
            left_out[layer] = error
    if not fits:
        raise left_out[read.layers[-1]]
    return fits, left_out


def tried_layers(layer_count: int) -> tuple[int, ...]:
    """Returns the layers to extract at where one of them is to be chosen: every second one of the middle of the model."""
    first = int(0.4 * layer_count)
    return tuple(range(first, max(int(0.8 * layer_count), first + 1), 2))


def check_position(position: Position) -> None:
    """Raises InvalidRequest for "all"."""
    if position == "all":
        raise InvalidRequest(
            "position 'all' gives many activations per text, but a vector needs one: 'last', 'mean', 'response_mean' "
            "or an offset from the end such as -2",
            param="position",
        )


async def read_pairs(
    engine: Engine, request: ExtractionRequest, layers: tuple[int, ...], total: int, progress: Progress
) -> ReadPairs:
    """Reads all texts in one call, each different one once, all layers in one pass. For position "response_mean" plain texts
    are wrapped as replies."""
    positive, negative = request.pairs.positive, request.pairs.negative
    if request.position == "response_mean":
        positive, negative = as_answers(positive), as_answers(negative)
    rows: Mapping[Text, int] = {text: i for i, text in enumerate(dict.fromkeys(positive + negative))}
    repeated = len(positive) + len(negative) - len(rows)
    captures = await engine.capture(
        await run_in_thread(capture_prompts, engine, tuple(rows)),
        CaptureSpec(layers=layers, position=request.position),
        progress=lambda done, _: progress(done + repeated, total, "reading texts"),
    )
    activations = torch.cat([capture.activations.float() for capture in captures], dim=1)
    return ReadPairs(
        layers,
        positive=activations[:, [rows[text] for text in positive]],
        negative=activations[:, [rows[text] for text in negative]],
    )


def assembled(
    info: ModelInfo,
    request: ExtractionRequest,
    fits: Mapping[int, LayerFit],
    auroc: Estimate | None,
    division: Folding,
    notes: Sequence[str],
    provenance: Mapping[str, Any],
) -> ConceptVector:
    """Builds the vector and its card. auroc: of the whole procedure. division: what was held out. notes: further warnings of
    the card."""
    pairs = request.pairs
    count = min(len(pairs.positive), len(pairs.negative))
    card = build_card(
        {layer: fit.quality for layer, fit in fits.items()},
        layer_count=info.layer_count,
        pairs=count,
        holdout=division.holdout,
        folds=division.folds,
        topics=min(len(set(one)) for one in groups_of(pairs)),
        auroc=auroc,
    )
    card = replace(card, warnings=(*card.warnings, *notes))
    directions = {layer: fit.direction for layer, fit in fits.items()}
    scales = {layer: direction.scale for layer, direction in directions.items()}
    return ConceptVector(
        name=request.name,
        model=info.name,
        model_fingerprint=info.fingerprint,
        d_model=info.d_model,
        method=request.method,
        layers=directions,
        description=request.description,
        tags=request.tags,
        recommended=recommend(card, info.layer_count, scales, info.typical_norms),
        quality=card,
        provenance=provenance,
    )


def notes_of(engine: Engine, request: ExtractionRequest, left_out: Mapping[int, InvalidRequest]) -> list[str]:
    """Returns what a card says of how the pairs were made, of layers without a direction and of how the texts were read."""
    notes = [*request.notes]
    if left_out:
        first = next(iter(left_out.values()))
        layers = ", ".join(str(layer) for layer in left_out)
        notes.append(f"left out, because the method found no direction there: layer {layers} ({first.message})")
    if _text_form(engine, request) == "transcript":
        notes.append("conversations were read as a plain transcript, because the model has no chat template")
    return notes


def _text_form(engine: Engine, request: ExtractionRequest) -> str:
    """Returns how the texts were written for the model: "plain", "chat_template" or "transcript"."""
    plain = all(isinstance(text, str) for text in (*request.pairs.positive, *request.pairs.negative))
    if plain and request.position != "response_mean":
        return "plain"
    return "chat_template" if engine.info.chat_template else "transcript"


def provenance_of(engine: Engine, request: ExtractionRequest) -> dict[str, Any]:
    """Returns what it takes to make the same vector again."""
    pairs = request.pairs
    return {
        "method": request.method,
        "position": request.position,
        "text_form": _text_form(engine, request),
        "seed": request.seed,
        "holdout": request.holdout,
        "dataset": dataset_digest(pairs),
        "paired": pairs.paired,
        "positives": len(pairs.positive),
        "negatives": len(pairs.negative),
        "topics": len(set(pairs.topics)),
        "model": engine.info.name,
        "model_revision": engine.info.revision,
        "dtype": engine.info.dtype,
    }
