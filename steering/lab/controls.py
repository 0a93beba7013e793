"""Plans with other vectors in place of those of a request: random ones of the same dose, or one from half of the pairs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import inf

import torch

from steering.cards import Recommended, own_position
from steering.engine.api import Engine
from steering.errors import DoseExceeded, InvalidRequest
from steering.extraction import METHODS
from steering.model.info import ModelInfo
from steering.pairs import PairSet
from steering.plan.resolve import resolve
from steering.plan.types import DoseGuard, SteeringPlan
from steering.spec import InterventionSpec, SteeringSpec, vector_names
from steering.vectors import ConceptVector, LayerDirection, VectorsByName, mix, random_directions
from steering.workflows.extract import START, ExtractionRequest, extract
from steering.workflows.texts import subset

UNGUARDED = DoseGuard(action="off")
"""No dose guard: a sweep includes strengths that break the text on purpose."""
DOSE_RESPONSE, LAYER_SWEEP, REPORT, TRANSFER = range(1, 5)
"""Purposes of `control_seeds`."""


async def planned(
    info: ModelInfo, vector: ConceptVector, *items: InterventionSpec, guard: DoseGuard = UNGUARDED
) -> SteeringPlan:
    """Resolves interventions whose every name stands for one vector, which need not be stored. Raises what `resolve` raises."""
    spec = SteeringSpec(interventions=items)
    return await resolve(spec, VectorsByName(dict.fromkeys(vector_names(spec), vector)), info, guard=guard)


async def plan_at(
    info: ModelInfo, vector: ConceptVector, strength: float, layers: Sequence[int], guard: DoseGuard = UNGUARDED
) -> SteeringPlan:
    """Resolves an add of `strength` natural scales at each of the layers; the empty plan for 0. Raises DoseExceeded."""
    intervention = InterventionSpec(vector=vector.name, strength=float(strength), layers=tuple(layers))
    try:
        return await planned(info, vector, intervention, guard=guard)
    except DoseExceeded as error:
        raise DoseExceeded(f"strength {strength:g}: {error.message}", param="strengths") from None


def random_like(vector: ConceptVector, seed: int) -> ConceptVector:
    """Returns the control of one vector; see `random_alike`."""
    return random_alike({vector.id: vector}, seed)[vector.id]


def random_alike(vectors: Mapping[str, ConceptVector], seed: int) -> dict[str, ConceptVector]:
    """Rotates vectors at random as a whole, keeping scales and cosines: a control that adds the same norm at every
    layer.
    V (d_model, direction) = Q R; the control is Q' R, with Q' (d_model, k) a random orthonormal basis."""
    places = [(name, layer) for name, vector in vectors.items() for layer in sorted(vector.layers)]
    directions = torch.stack([vectors[name].layers[layer].direction for name, layer in places], dim=1).double()
    mixing = torch.linalg.qr(directions)[1]
    basis, triangle = torch.linalg.qr(random_directions(len(mixing), len(directions), seed).T)
    # the decomposition chooses signs by the first coordinate, which would leave out the opposite of every direction
    rotated = (basis * triangle.diagonal().sign() @ mixing).float()
    columns = dict(zip(places, (rotated / rotated.norm(dim=0)).T, strict=True))
    controls = {}
    for name, vector in vectors.items():
        entries = vector.layers.items()
        layers = {at: _calibrated_as(LayerDirection(columns[name, at], scale=one.scale), one) for at, one in entries}
        # what was measured of its own directions does not hold for these; `share_dose` asks for its layers
        recommended = Recommended(vector.recommended_layers())
        controls[name] = replace(
            vector, layers=layers, method="random", sha256="", quality=None, recommended=recommended
        )
    return controls


def _calibrated_as(entry: LayerDirection, other: LayerDirection) -> LayerDirection:
    """Returns an entry for which unit `kl` is as many natural scales as for another one."""
    return replace(entry, kl_positive=other.kl_positive, kl_negative=other.kl_negative)


def control_seeds(seed: int, purpose: int, count: int) -> list[int]:
    """Returns the seeds of the random directions of a run. Runs with other seeds, or for another purpose, share none."""
    return [mix(mix(seed, purpose), number) for number in range(count)]


def random_arms(vector: ConceptVector, seed: int, purpose: int, count: int) -> list[ConceptVector]:
    """Draws random controls of a vector; see `control_seeds`."""
    return [random_like(vector, one) for one in control_seeds(seed, purpose, count)]


async def random_plans(
    info: ModelInfo, plan: SteeringPlan, vectors: Mapping[str, ConceptVector], seeds: Iterable[int]
) -> tuple[SteeringPlan, ...]:
    """Returns a plan for each seed, with random directions of the same dose in place of the vectors; none unless all
    interventions are plain adds, since what others do depends on the residual along the direction."""
    own = plan.interventions[: plan.own]
    plain = all(one.spec.operation == "add" and one.spec.strength_from is None for one in own)
    if not plain or any(one.condition is not None or one.holds for one in own):
        return ()
    return tuple([await _with_vectors(info, plan, random_alike(vectors, seed)) for seed in seeds])


def acting_layers(plan: SteeringPlan, vector: ConceptVector) -> list[int]:
    """Returns the layers where interventions of the request itself act along a vector, or by its scores; conditions do not count."""
    own = plan.interventions[: plan.own]
    return sorted({layer for one in own if vector.id in (one.spec.vector, one.spec.other) for layer in one.layers})


async def fewer_pairs_plan(
    engine: Engine, vector: ConceptVector, pairs: PairSet, plan: SteeringPlan, vectors: Mapping[str, ConceptVector]
) -> SteeringPlan:
    """Returns the plan with the vector made again from every second topic of its pairs, at the layers where it acts. Raises
    InvalidRequest where these pairs give no direction at one of them."""
    topics = set(sorted(set(pairs.topics))[::2])
    half = subset(pairs, [index for index, topic in enumerate(pairs.topics) if topic in topics])
    layers = acting_layers(plan, vector)
    phase = vector.provenance.get("phase")
    request = ExtractionRequest(
        vector.name,
        half,
        method=vector.method if vector.method in METHODS else START,
        layers=tuple(layers or vector.recommended_layers()),
        position=own_position(vector.method, vector.provenance),
        phase=tuple(phase) if isinstance(phase, list) else None,
        holdout=0.0,
    )
    made = await extract(engine, request)
    if missing := [layer for layer in layers if layer not in made.layers]:
        raise InvalidRequest(f"no direction stands out at layer {', '.join(map(str, missing))}", param="steering")
    same = {layer: _calibrated_as(one, vector.layers.get(layer, one)) for layer, one in made.layers.items()}
    other = replace(vector, layers={**vector.layers, **same})
    return await _with_vectors(engine.info, plan, {**vectors, vector.id: other})


async def _with_vectors(info: ModelInfo, plan: SteeringPlan, vectors: Mapping[str, ConceptVector]) -> SteeringPlan:
    guard = DoseGuard(inf, "off") if plan.dose_bound is None else DoseGuard(plan.dose_bound, "clamp")
    spec = SteeringSpec(interventions=plan.spec.interventions[: plan.own])  # the engine adds what is mandatory
    by_name = {name: one for one in vectors.values() for name in (one.name, one.id)}
    return await resolve(spec, VectorsByName(by_name), info, guard=guard)
