"""Carries a direction from one model to another, and measures the loss on held-out pairs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from steering.auroc import HeldOut, estimate_auroc
from steering.engine.api import CaptureSpec, Engine
from steering.extraction.base import orient
from steering.extraction.card import build_card, recommend
from steering.extraction.cross_validation import Folding, folding, layer_quality
from steering.layer_indices import layer_indices
from steering.model.info import ModelInfo
from steering.pairs import Split, Text, dataset_digest
from steering.shapes import Direction, Float, Tensor
from steering.threads import run_in_thread
from steering.vectors import ConceptVector, LayerDirection
from steering.workflows.extraction.extract import ExtractionRequest, extract, read_pairs, tried_layers
from steering.workflows.extraction.texts import capture_prompts, reading_position
from steering.workflows.progress import Progress, ignore_progress
from steering.workflows.transfer.affine_map import AffineMap, fit_map
from steering.workflows.transfer.measures import ReadLayer, random_folds
from steering.workflows.transfer.request import Transfer, TransferRequest, check_transfer

METHOD = "transferred"
ROWS = 2
"""Rows that every anchor gives to the map."""
PART = 64
"""Anchors that are held with all their positions at a time."""
STEPS = 5


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """One of the two models: the layer that is read, and the pairs as it reads them there."""

    info: ModelInfo
    layer: int
    pairs: ReadLayer


async def transfer(
    target: Engine, source: Engine, request: TransferRequest, *, progress: Progress | None = None
) -> Transfer:
    """Fits the map on the anchors, carries the direction from `source` to `target`, and measures it there.

    Raises InvalidRequest for what `check_transfer` refuses, and where the pairs do not differ along the carried direction.
    """
    report = progress or ignore_progress
    check_transfer(request, target, source)
    report(0, STEPS, f"choosing a layer of {source.info.name}")
    from_layer = await _layer(source, request, request.from_layer)
    report(1, STEPS, f"choosing a layer of {target.info.name}")
    to_layer = await _layer(target, request, request.to_layer)
    report(2, STEPS, "reading pairs")
    sides = await _side(source, request, from_layer), await _side(target, request, to_layer)
    report(3, STEPS, "reading anchors")
    anchors = [await _anchors(*one, request.anchors) for one in ((source, from_layer), (target, to_layer))]
    report(4, STEPS, "fitting the map")
    carried = await run_in_thread(fit_map, anchors[0], anchors[1], ROWS)
    found = await run_in_thread(_result, *sides, request, carried)
    report(STEPS, STEPS, "done")
    return found


async def _layer(engine: Engine, request: TransferRequest, given: int | None) -> int:
    count = engine.info.layer_count
    if given is not None:
        return layer_indices((given,), count)[0]
    vector = await extract(engine, _extraction(request, tried_layers(count)))
    return vector.recommended_layers()[0]


def _extraction(request: TransferRequest, layers: tuple[int, ...]) -> ExtractionRequest:
    return ExtractionRequest(
        request.name,
        request.pairs,
        layers=layers,
        position=reading_position(request.pairs, request.position),
        holdout=request.holdout,
        seed=request.seed,
    )


async def _side(engine: Engine, request: TransferRequest, layer: int) -> Side:
    read = await read_pairs(engine, _extraction(request, (layer,)), (layer,), 0, ignore_progress)
    return Side(engine.info, layer, ReadLayer(read.positive[0], read.negative[0], request.pairs.paired))


async def _anchors(engine: Engine, layer: int, texts: Sequence[Text]) -> Float[Tensor, "row d_model"]:
    """ROWS rows for each text: the mean over all positions but the first, whose norm is of its own, and the last position."""
    rows: list[Tensor] = []
    for start in range(0, len(texts), PART):
        prompts = await run_in_thread(capture_prompts, engine, texts[start : start + PART])
        for one in await engine.capture(prompts, CaptureSpec((layer,), "all")):
            read = one.activations[0].float()
            rows += [read[1:].mean(0) if len(read) > 1 else read[0], read[-1]]
    return torch.stack(rows)


def _result(source: Side, target: Side, request: TransferRequest, carried: AffineMap) -> Transfer:
    division = folding(request.pairs, request.holdout, request.seed)

    def source_fold(fold: Split) -> Direction:
        return source.pairs.fit(fold).direction if request.direction is None else request.direction

    def carried_fold(fold: Split) -> Direction:
        return target.pairs.signed(carried.carry(source_fold(fold)), fold)

    transferred = target.pairs.measured(division, carried_fold, division.splits)
    direction = source.pairs.fit().direction if request.direction is None else request.direction
    values = carried.carry(direction)
    entry = orient(values, target.pairs.positive, target.pairs.negative)
    warnings = []
    if float(entry.direction @ values) < 0.0:
        warnings.append("the carried direction had the opposite sign in the target model; it was turned by the pairs")
    native = target.pairs.fit()
    return Transfer(
        vector=_vector(source, target, request, entry, division, transferred),
        fitted=native,
        source_model=source.info.name,
        from_layer=source.layer,
        to_layer=target.layer,
        anchors=len(request.anchors),
        explained=carried.explained,
        penalty=carried.penalty,
        cosine=float(torch.nn.functional.cosine_similarity(entry.direction, native.direction, dim=0)),
        source=estimate_auroc(source.pairs.measured(division, source_fold, division.splits)),
        native=estimate_auroc(
            target.pairs.measured(division, lambda fold: target.pairs.fit(fold).direction, division.splits)
        ),
        transferred=estimate_auroc(transferred),
        random=estimate_auroc(random_folds(target.pairs, division, request.seed)),
        warnings=tuple(warnings),
    )


def _vector(
    source: Side,
    target: Side,
    request: TransferRequest,
    entry: LayerDirection,
    division: Folding,
    folds: list[list[HeldOut]],
) -> ConceptVector:
    info, pairs, layer = target.info, request.pairs, target.layer
    card = build_card(
        {layer: layer_quality(folds)},
        layer_count=info.layer_count,
        pairs=min(len(pairs.positive), len(pairs.negative)),
        holdout=division.holdout,
        folds=division.folds,
        topics=len(set(pairs.topics)) or len(pairs),
        auroc=estimate_auroc(folds),
    )
    return ConceptVector(
        name=request.name,
        model=info.name,
        model_fingerprint=info.fingerprint,
        d_model=info.d_model,
        method=METHOD,
        layers={layer: entry},
        description=request.description,
        tags=request.tags,
        recommended=recommend(card, info.layer_count, {layer: entry.scale}, info.typical_norms),
        quality=card,
        provenance={
            "method": METHOD,
            "position": reading_position(pairs, request.position),
            "dataset": dataset_digest(pairs),
            "seed": request.seed,
            "model": info.name,
            "from_model": source.info.name,
            "from_fingerprint": source.info.fingerprint,
            "from_layer": source.layer,
            "anchors": len(request.anchors),
        },
    )
