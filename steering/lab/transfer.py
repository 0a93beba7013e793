"""Carries a direction from one model to another, and measures the loss: on held-out pairs, and in what is written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from steering.auroc import HeldOut, Indices, Numbers, estimate_auroc
from steering.cards import Estimate
from steering.concepts import CONCEPTS
from steering.concepts.loader import load_concept, load_neutral_texts
from steering.engine.api import CaptureSpec, Engine, Prompt, SamplingParams
from steering.errors import InvalidRequest
from steering.extraction.base import MeanDifference, orient
from steering.extraction.cross_validation import Folding, LayerFit, folding, layer_quality
from steering.lab.controls import TRANSFER, plan_at, random_arms
from steering.lab.trials import CONTROLS, ReadBack, Samples, chance_at, mean_shifts, run_trials, shifts, trial_answers
from steering.layer_indices import layer_indices
from steering.model.info import ModelInfo
from steering.pairs import PairSet, Split, Text, dataset_digest, groups_of
from steering.schemas.extraction import EffectAnswer
from steering.schemas.messages import position_as_json
from steering.shapes import Direction, Float, Tensor
from steering.threads import run_in_thread
from steering.vectors import ConceptVector, LayerDirection, check_name, random_directions
from steering.workflows.extract import ExtractionRequest, assembled, extract, read_pairs, tried_layers
from steering.workflows.generate import Progress, ignore_progress
from steering.workflows.measures import estimate
from steering.workflows.texts import capture_prompts

PENALTIES = tuple(10.0**power for power in range(-6, 2))
"""Ridge penalties that are tried, as multiples of the number of texts times the mean variance of an input dimension."""
HELD = 5
"""Every fifth group of texts is held out to measure the fit."""
MIN_ANCHORS, MAX_ANCHORS = 20, 2_000
METHOD = "transferred"
ROWS = 2
"""Rows that every anchor gives to the map."""
PART = 64
"""Anchors that are held with all their positions at a time."""
STEPS = 5
RANDOM_DIRECTIONS = 8
"""Random directions for each split into folds; each is signed by the pairs that are not held out."""
DOSE = 0.15
"""Planned relative dose: at 0.2 text breaks for half of the starter concepts (docs/dose_response_results.md)."""
TEMPERATURE = 0.7
"""Of the answers of a job."""


@dataclass(frozen=True, slots=True, eq=False)
class AffineMap:
    """y = x @ weight + bias. penalty: one of PENALTIES. explained: share of the variance of held-out residuals."""

    weight: Float[Tensor, "d_from d_to"]
    bias: Float[Tensor, "d_to"]
    penalty: float
    explained: float

    def carry(self, direction: Float[Tensor, "d_from"]) -> Float[Tensor, "d_to"]:
        """Returns the change of y by a change of x along a direction, per unit of x; not of unit length."""
        carried: Tensor = (direction.double() @ self.weight).float()
        return carried


def fit_map(source: Float[Tensor, "row d_from"], target: Float[Tensor, "row d_to"], groups: Indices) -> AffineMap:
    """Fits by ridge regression, measured on held-out groups, then on all. groups (row,): numbers from 0; rows of a group are alike."""
    x, y = source.double().numpy(), target.double().numpy()
    held = groups % HELD == HELD - 1
    weight, bias, _ = _ridge(x[~held], y[~held], groups[~held])
    errors = ((y[held] - x[held] @ weight - bias) ** 2).sum()
    spread = ((y[held] - y[~held].mean(0)) ** 2).sum()
    weight, bias, penalty = _ridge(x, y, groups)
    explained = float(1.0 - errors / spread) if spread > 0.0 else 0.0
    return AffineMap(torch.from_numpy(weight), torch.from_numpy(bias), penalty, explained)


def _ridge(x: Numbers, y: Numbers, groups: Indices) -> tuple[Numbers, Numbers, float]:
    """Returns weight, bias and the penalty with the smallest error at left-out groups: (I - H_gg)^-1 (y - H y)_g for the
    rows g of a group, with the hat matrix H = U S U^T + 1/n."""
    unit = max(float(x.var(0).mean()) * len(x), 1e-12)
    left, sizes, right = np.linalg.svd(x - x.mean(0), full_matrices=False)
    centred, members = y - y.mean(0), [np.flatnonzero(groups == one) for one in np.unique(groups)]
    inside = left.T @ centred

    def error(penalty: float) -> float:
        shares = sizes**2 / (sizes**2 + penalty * unit)
        missed, total = centred - left @ (shares[:, None] * inside), 0.0
        for one in members:
            hat = (left[one] * shares) @ left[one].T + 1.0 / len(x)
            total += float((np.linalg.solve(np.eye(len(one)) - hat, missed[one]) ** 2).sum())
        return total

    best = min(PENALTIES, key=error)
    weight = right.T @ ((sizes / (sizes**2 + best * unit))[:, None] * inside)
    return weight, y.mean(0) - x.mean(0) @ weight, best


@dataclass(frozen=True, slots=True, eq=False)
class TransferRequest(ExtractionRequest):
    """What is carried over. pairs: fit the source's direction, unless `direction` is given, and measure the result.
    anchors: texts that both models read. from_layer, to_layer: None for those that read the pairs best."""

    method: str = METHOD
    anchors: tuple[Text, ...] = ()
    direction: Direction | None = None
    from_layer: int | None = None
    to_layer: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Transfer:
    """The vector in the target model, and its measurements. fitted: the native direction. explained: share of the
    variance of held-out anchors. cosine: of the carried with the native direction.
    auroc: on held-out pairs, of the `source`, the `native`, the `transferred` and `random` directions."""

    vector: ConceptVector
    fitted: LayerDirection
    source_model: str
    from_layer: int
    to_layer: int
    anchors: int
    explained: float
    cosine: float
    auroc: Mapping[str, Estimate | None]
    warnings: tuple[str, ...] = ()


def default_anchors(pairs: PairSet) -> tuple[Text, ...]:
    """Returns the texts of the starter concepts and neutral statements, without those of the pairs."""
    own = {*pairs.positive, *pairs.negative}
    texts: list[Text] = list(load_neutral_texts())
    for name in CONCEPTS:
        concept = load_concept(name)
        if dataset_digest(concept) != dataset_digest(pairs):
            texts += [text for pair in concept for text in pair]
    return tuple(text for text in dict.fromkeys(texts) if text not in own)[:MAX_ANCHORS]


def anchor_groups(anchors: Sequence[Text]) -> Indices:
    """Returns a number from 0 for each text: texts of one topic of a starter concept have the same one, since the two texts of a pair
    are alike; any other text has one of its own, and equal texts have the same one. Each text has one of its own where these are fewer
    than HELD."""
    names: dict[Text, tuple[str, str]] = {}
    for concept in CONCEPTS:
        pairs = load_concept(concept)
        for texts, groups in zip((pairs.positive, pairs.negative), groups_of(pairs), strict=True):
            names |= {text: (concept, group) for text, group in zip(texts, groups, strict=True)}
    numbers = dict[Text | tuple[str, str], int]()
    found = [numbers.setdefault(names.get(text, text), len(numbers)) for text in anchors]
    return np.array(found) if len(numbers) >= HELD else np.arange(len(anchors))


def check_transfer(request: TransferRequest, target: Engine, source: Engine | None = None) -> None:
    """Raises InvalidRequest for what cannot be carried over. source: None where it is not loaded yet."""
    check_name(request.name)
    if not MIN_ANCHORS <= len(request.anchors) <= MAX_ANCHORS:
        raise InvalidRequest(
            f"{len(request.anchors)} anchor texts; a map needs {MIN_ANCHORS} to {MAX_ANCHORS}", param="anchors"
        )
    shared = {*request.pairs.positive, *request.pairs.negative}.intersection(request.anchors)
    if shared:
        raise InvalidRequest(
            f"{len(shared)} anchors are texts of the pairs, on which the loss is measured; leave them out",
            param="anchors",
        )
    if request.to_layer is not None:
        layer_indices((request.to_layer,), target.info.layer_count)
    if request.direction is not None and request.from_layer is None:
        raise InvalidRequest("a given direction needs 'from_layer', where it was found", param="from_layer")
    if source is None:
        return
    if request.from_layer is not None:
        layer_indices((request.from_layer,), source.info.layer_count)
    if request.direction is not None and len(request.direction) != source.info.d_model:
        raise InvalidRequest(
            f"the direction has {len(request.direction)} numbers; {source.info.name} has d_model {source.info.d_model}",
            param="direction",
        )


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
        """Turns a direction from the negative to the positive texts that a split does not hold out."""
        positive, negative = self._fitted(split)
        return direction if float(direction @ (positive.mean(0) - negative.mean(0))) >= 0.0 else -direction

    def measured(self, division: Folding, fit: Callable[[Split], Direction], repeats: int = 1) -> list[list[HeldOut]]:
        """Projects what each fold holds out on the direction that is fitted without it."""
        positive, negative = self.positive, self.negative
        return [
            [division.read(fit(fold), positive, negative, fold) for fold in split]
            for split in division.splits * repeats
        ]


async def transfer(
    target: Engine, source: Engine, request: TransferRequest, *, progress: Progress = ignore_progress
) -> Transfer:
    """Fits the map on the anchors, carries the direction from `source` to `target`, and measures it there. Raises
    InvalidRequest for what `check_transfer` refuses, and where the pairs do not differ along the carried direction."""
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
    carried = await run_in_thread(fit_map, anchors[0], anchors[1], np.repeat(anchor_groups(request.anchors), ROWS))
    found = await run_in_thread(_result, *sides, request, carried)
    progress(STEPS, STEPS, "done")
    return found


async def _layer(engine: Engine, request: TransferRequest, given: int | None) -> int:
    count = engine.info.layer_count
    if given is not None:
        return layer_indices((given,), count)[0]
    vector = await extract(engine, replace(request, method=MeanDifference.name, layers=tried_layers(count)))
    return vector.recommended_layers()[0]


async def _side(engine: Engine, request: TransferRequest, layer: int) -> Side:
    read = await read_pairs(engine, request, (layer,), 0, ignore_progress)
    return Side(engine.info, layer, *read[layer], request.pairs.paired)


async def _anchors(engine: Engine, layer: int, texts: Sequence[Text]) -> Float[Tensor, "row d_model"]:
    """Reads ROWS rows for each text: the mean over all positions but the first, and the last position."""
    rows: list[Tensor] = []
    for start in range(0, len(texts), PART):
        prompts = await run_in_thread(capture_prompts, engine, texts[start : start + PART])
        for one in await engine.capture(prompts, CaptureSpec((layer,), "all")):
            read = one.activations[0].float()
            rows += [read[1:].mean(0) if len(read) > 1 else read[0], read[-1]]
    return torch.stack(rows)


def _result(source: Side, target: Side, request: TransferRequest, carried: AffineMap) -> Transfer:
    division = folding(request.pairs, request.holdout, request.seed)
    count = RANDOM_DIRECTIONS * sum(map(len, division.splits))
    drawn = iter(random_directions(count, target.positive.shape[1], request.seed))

    def source_fold(fold: Split | None = None) -> Direction:
        return source.fit(fold).direction if request.direction is None else request.direction

    def random_fold(fold: Split) -> Direction:
        return target.signed(next(drawn).float(), fold)

    transferred = target.measured(division, lambda fold: target.signed(carried.carry(source_fold(fold)), fold))
    values = carried.carry(source_fold())
    entry, native = orient(values, target.positive, target.negative), target.fit()
    warnings = []
    if float(entry.direction @ values) < 0.0:
        warnings.append("the carried direction had the opposite sign in the target model; it was turned by the pairs")
    fits = {target.layer: LayerFit(entry, layer_quality(transferred))}
    provenance = {
        "method": METHOD,
        "position": position_as_json(request.position),
        "dataset": dataset_digest(request.pairs),
        "seed": request.seed,
        "model": target.info.name,
        "from_model": source.info.name,
        "from_fingerprint": source.info.fingerprint,
        "from_layer": source.layer,
        "anchors": len(request.anchors),
    }
    auroc = estimate_auroc(transferred)
    return Transfer(
        vector=assembled(target.info, request, fits, auroc, division, (), provenance),
        fitted=native,
        source_model=source.info.name,
        from_layer=source.layer,
        to_layer=target.layer,
        anchors=len(request.anchors),
        explained=carried.explained,
        cosine=float(torch.nn.functional.cosine_similarity(entry.direction, native.direction, dim=0)),
        auroc={
            "source": estimate_auroc(source.measured(division, source_fold)),
            "native": estimate_auroc(target.measured(division, lambda fold: target.fit(fold).direction)),
            "transferred": auroc,
            "random": estimate_auroc(target.measured(division, random_fold, RANDOM_DIRECTIONS)),
        },
        warnings=tuple(warnings),
    )


@dataclass(frozen=True, slots=True, eq=False)
class EffectRequest:
    """What is measured. relative_dose: of each vector over its layers. native: of the target; None: the fitted one."""

    prompts: Sequence[Prompt]
    sampling: SamplingParams
    relative_dose: float = DOSE
    native: ConceptVector | None = None


def effect_answers(prompts: int) -> int:
    """How many answers `effect` generates."""
    return trial_answers(2 + CONTROLS, prompts)


async def effect(
    target: Engine, found: Transfer, request: EffectRequest, *, progress: Progress = ignore_progress
) -> EffectAnswer:
    """Answers the prompts unsteered, with each vector and with CONTROLS random directions at one relative dose, read
    along the fitted direction. Raises InvalidRequest where typical norms are not known."""
    fitted = replace(found.vector, layers={found.to_layer: found.fitted}, recommended=None)
    random = random_arms(fitted, request.sampling.seed, TRANSFER, CONTROLS)
    vectors = [request.native or fitted, found.vector, *random]
    if not (norms := target.info.typical_norms):
        raise InvalidRequest(
            "a relative dose needs the typical norms of the model, which were not measured", param="effect"
        )
    plans = []
    for vector in vectors:  # each at one strength, over all its recommended layers
        layers = vector.recommended_layers()
        planned = sum(vector.at(layer).scale / norms[layer] for layer in layers)
        plans.append(await plan_at(target.info, vector, request.relative_dose / planned, layers))
    reading = ReadBack(found.to_layer, found.fitted)
    unsteered, (native, transferred, *controls) = await run_trials(
        target, request.prompts, plans, reading, request.sampling, samples=Samples(perplexity=False), progress=progress
    )
    named = {"native": native, "transferred": transferred}
    shift = {name: estimate(shifts(one, unsteered)) if one.broken is None else None for name, one in named.items()}
    return EffectAnswer(
        relative_dose=request.relative_dose,
        prompts=len(request.prompts),
        max_tokens=request.sampling.max_tokens,
        native=None if request.native is None else request.native.id,
        shift=shift,
        chance=chance_at(mean_shifts(unsteered, controls)),
        scores=(
            unsteered.answer("unsteered"),
            *(one.answer("steered", vector=name) for name, one in named.items()),
            *(one.answer("random", direction=at) for at, one in enumerate(controls)),
        ),
    )
