"""Carries a direction from one model to another, and measures the loss on held-out pairs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

from steering.auroc import HeldOut, estimate_auroc
from steering.engine.api import CaptureSpec, Engine
from steering.extraction.base import orient
from steering.extraction.cross_validation import Folding, LayerFit, folding, held_out, layer_quality
from steering.extraction.differences import MeanDifference
from steering.layer_indices import layer_indices
from steering.model.info import ModelInfo
from steering.pairs import Split, Text, dataset_digest
from steering.shapes import Direction, Float, Tensor
from steering.threads import run_in_thread
from steering.vectors import ConceptVector, LayerDirection
from steering.workflows.extraction.extract import ExtractionRequest, assembled, extract, read_pairs, tried_layers
from steering.workflows.extraction.texts import capture_prompts, default_position
from steering.workflows.progress import Progress, ignore_progress
from steering.workflows.transfer.affine_map import AffineMap, fit_map
from steering.workflows.transfer.request import Transfer, TransferRequest, check_transfer

METHOD = "transferred"
ROWS = 2
"""Rows that every anchor gives to the map."""
PART = 64
"""Anchors that are held with all their positions at a time."""
STEPS = 5
RANDOM_DIRECTIONS = 8
"""Random directions for each split into folds; each is signed by the pairs that are not held out."""

FitFold: TypeAlias = Callable[[Split], Direction]


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """The pairs as one of the two models reads them at one layer."""

    info: ModelInfo
    layer: int
    positive: Float[Tensor, "pos d_model"]
    negative: Float[Tensor, "neg d_model"]
    paired: bool

    def fit(self, split: Split | None = None) -> LayerDirection:
        """Fits the mean difference, without what a split holds out."""
        rows = (self.positive, self.negative) if split is None else self._fitted(split)
        return MeanDifference.fit(*rows, self.paired)

    def _fitted(self, split: Split) -> tuple[Tensor, Tensor]:
        return self.positive[list(split.fit_positive)], self.negative[list(split.fit_negative)]

    def signed(self, direction: Direction, split: Split) -> Direction:
        """Turns a direction so that it points from the negative to the positive texts that a split does not hold out."""
        positive, negative = self._fitted(split)
        return direction if float(direction @ (positive.mean(0) - negative.mean(0))) >= 0.0 else -direction

    def measured(self, division: Folding, fit: FitFold, repeats: int = 1) -> list[list[HeldOut]]:
        """Projects what each fold holds out on the direction that is fitted without it."""

        def read(fold: Split) -> HeldOut:
            positive, negative = list(fold.held_positive), list(fold.held_negative)
            groups = division.positive_groups[positive], division.negative_groups[negative]
            return held_out(fit(fold), self.positive[positive], self.negative[negative], *groups)

        return [[read(fold) for fold in split] for split in division.splits * repeats]

    def random(self, division: Folding, seed: int) -> list[list[HeldOut]]:
        """Projects held-out pairs on random directions."""
        generator = torch.Generator().manual_seed(seed % 2**63)

        def fit(fold: Split) -> Direction:
            return self.signed(torch.randn(self.positive.shape[1], generator=generator), fold)

        return self.measured(division, fit, RANDOM_DIRECTIONS)


async def transfer(
    target: Engine, source: Engine, request: TransferRequest, *, progress: Progress = ignore_progress
) -> Transfer:
    """Fits the map on the anchors, carries the direction from `source` to `target`, and measures it there.

    Raises InvalidRequest for what `check_transfer` refuses, and where the pairs do not differ along the carried direction.
    """
    check_transfer(request, target, source)
    progress(0, STEPS, f"choosing a layer of {source.info.name}")
    from_layer = await _layer(source, request, request.from_layer)
    progress(1, STEPS, f"choosing a layer of {target.info.name}")
    to_layer = await _layer(target, request, request.to_layer)
    progress(2, STEPS, "reading pairs")
    sides = await _side(source, request, from_layer), await _side(target, request, to_layer)
    progress(3, STEPS, "reading anchors")
    anchors = [await _anchors(*one, request.anchors) for one in ((source, from_layer), (target, to_layer))]
    progress(4, STEPS, "fitting the map")
    carried = await run_in_thread(fit_map, anchors[0], anchors[1], ROWS)
    found = await run_in_thread(_result, *sides, request, carried)
    progress(STEPS, STEPS, "done")
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
        position=default_position(request.pairs) if request.position is None else request.position,
        holdout=request.holdout,
        seed=request.seed,
        description=request.description,
        tags=request.tags,
    )


async def _side(engine: Engine, request: TransferRequest, layer: int) -> Side:
    read = await read_pairs(engine, _extraction(request, (layer,)), (layer,), 0, ignore_progress)
    return Side(engine.info, layer, *read.at(layer), request.pairs.paired)


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

    def source_fold(fold: Split | None = None) -> Direction:
        return source.fit(fold).direction if request.direction is None else request.direction

    def carried_fold(fold: Split) -> Direction:
        return target.signed(carried.carry(source_fold(fold)), fold)

    transferred = target.measured(division, carried_fold)
    values = carried.carry(source_fold())
    entry = orient(values, target.positive, target.negative)
    warnings = []
    if float(entry.direction @ values) < 0.0:
        warnings.append("the carried direction had the opposite sign in the target model; it was turned by the pairs")
    native = target.fit()
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
        source=estimate_auroc(source.measured(division, source_fold)),
        native=estimate_auroc(target.measured(division, lambda fold: target.fit(fold).direction)),
        transferred=estimate_auroc(transferred),
        random=estimate_auroc(target.random(division, request.seed)),
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
    extraction = replace(_extraction(request, (target.layer,)), method=METHOD)
    fits = {target.layer: LayerFit(entry, layer_quality(folds))}
    provenance = {
        "method": METHOD,
        "position": extraction.position,
        "dataset": dataset_digest(request.pairs),
        "seed": request.seed,
        "model": target.info.name,
        "from_model": source.info.name,
        "from_fingerprint": source.info.fingerprint,
        "from_layer": source.layer,
        "anchors": len(request.anchors),
    }
    return assembled(target.info, extraction, fits, estimate_auroc(folds), division, (), provenance)
