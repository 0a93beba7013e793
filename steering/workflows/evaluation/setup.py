"""Prepares an evaluation: its prompts, its plans and random controls, and how the answers are read back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from steering.concepts.loader import load_neutral
from steering.engine.api import Engine, Prompt, SamplingParams
from steering.errors import DoseExceeded, InvalidRequest, VectorNotFound
from steering.extraction.card import best_layer
from steering.model.info import ModelInfo
from steering.pairs import ChatMessage
from steering.plan.dose import DoseGuard
from steering.plan.layers import check_model, resolve_layers
from steering.plan.resolve import resolve
from steering.plan.types import SteeringPlan
from steering.shapes import Direction
from steering.spec import InterventionSpec, Layers, SteeringSpec
from steering.vectors import ConceptVector, LayerDirection
from steering.workflows.evaluation.scorers import SCORERS
from steering.workflows.generate import mix

UNGUARDED = DoseGuard(action="off")
"""No dose guard: a sweep includes strengths that break the text on purpose."""
WRITING = SamplingParams(max_tokens=48, temperature=0.7)
"""Warm enough that prompts stand for more than one text each, cool enough to be the text people read."""


@dataclass(frozen=True, slots=True, eq=False)
class StrengthsRequest:
    """What evaluations of a vector over many strengths take.

    prompts: what the model answers; None takes the package's neutral prompts. strengths: in natural scales of each layer.
    reader: the vector that scores the text (this one if None), at reading_layer (where it reads best if None).
    guard: a dose that the caller may not exceed; it refuses strengths beyond it.
    """

    vector: ConceptVector
    prompts: tuple[Prompt, ...] | None = None
    strengths: tuple[float, ...] = ()
    layers: Layers = "all"
    reader: ConceptVector | None = None
    reading_layer: int | None = None
    scorer: str = "projection"
    sampling: SamplingParams = WRITING
    guard: DoseGuard = UNGUARDED


@dataclass(frozen=True, slots=True, eq=False)
class ReadBack:
    """Where and how an answer's concept is read: the unsteered model at `layer`, along the direction of `entry`."""

    layer: int
    entry: LayerDirection
    scorer: str = "projection"


@dataclass(frozen=True, slots=True, eq=False)
class Setup:
    """A request with names and defaults resolved. arms: the vector, then its random controls."""

    reading: ReadBack
    layers: tuple[int, ...]
    prompts: tuple[Prompt, ...]
    strengths: list[float]
    arms: list[ConceptVector]


def read_back(
    engine: Engine, vector: ConceptVector, reader: ConceptVector | None, layer: int | None, scorer: str
) -> ReadBack:
    """Resolves the reader (None: the vector itself) and its layer (None: where its card reads best).

    Raises VectorModelMismatch for another model's vector, InvalidRequest for a layer it does not have, an unknown
    scorer, or a probe that was never fitted.
    """
    reading = reader or vector
    for one in (vector, reading):
        check_model(one, engine.info)
    if layer is None:
        layer = reading_layer(reading, engine.info.layer_count)
    entry = reading.at(layer)
    if SCORERS[scorer].name == "probe" and (entry.weight is None or entry.bias is None):
        raise InvalidRequest(f"vector {reading.name!r} has no probe at layer {layer}", param="scorer")
    return ReadBack(layer, entry, scorer)


def reading_layer(vector: ConceptVector, layer_count: int) -> int:
    """Returns the layer where the card reads best; without measurements, the layer the vector steers at."""
    card = vector.quality
    return best_layer(card.layers, layer_count) if card and card.layers else vector.recommended_layers()[0]


def evaluation_prompts(engine: Engine, given: tuple[Prompt, ...] | None, count: int) -> tuple[Prompt, ...]:
    """Returns the given prompts, or the first `count` of the package's neutral ones. Raises InvalidRequest for none."""
    if given is None:
        return as_prompts(engine, load_neutral()[:count])
    if not given:
        raise InvalidRequest("an evaluation needs at least one prompt", param="prompts")
    return given


def as_prompts(engine: Engine, texts: Sequence[str]) -> tuple[Prompt, ...]:
    """Wraps texts as user messages, or as the start of a plain transcript where the model has no chat template."""
    messages = [(ChatMessage("user", text),) for text in texts]
    return tuple(messages) if engine.info.chat_template else tuple(transcript(one) for one in messages)


def transcript(messages: Sequence[ChatMessage]) -> str:
    """Writes a conversation as plain text, for models without a chat template. It ends where a reply begins, or with it."""
    lines = [f"{message.role.capitalize()}: {message.content}" for message in messages]
    return "\n\n".join(lines if messages[-1].role == "assistant" else [*lines, "Assistant:"])


@dataclass(frozen=True, slots=True, eq=False)
class GivenVectors:
    """A VectorSource over vectors that need not be stored."""

    vectors: tuple[ConceptVector, ...]

    async def get(self, name: str, version: int | None = None) -> ConceptVector:
        """Returns the vector of that name and, where given, version. Raises VectorNotFound."""
        for vector in self.vectors:
            if vector.name == name and version in (None, vector.version):
                return vector
        raise VectorNotFound(f"no vector {name!r} among those given", param="vector")


async def plan_at(
    info: ModelInfo, vector: ConceptVector, strength: float, layers: Sequence[int], guard: DoseGuard = UNGUARDED
) -> SteeringPlan:
    """Resolves an add of the vector at `strength` natural scales at each of the layers. Strength 0 is the empty plan.

    Raises DoseExceeded where the guard refuses the strength.
    """
    intervention = InterventionSpec(vector=vector.name, strength=float(strength), layers=tuple(layers))
    try:
        return await resolve(SteeringSpec(interventions=(intervention,)), GivenVectors((vector,)), info, guard=guard)
    except DoseExceeded as error:
        raise DoseExceeded(f"strength {strength:g}: {error.message}", param="strengths") from None


def random_like(vector: ConceptVector, seed: int) -> ConceptVector:
    """Returns the control of one vector; see `random_alike`."""
    return random_alike({vector.id: vector}, seed)[vector.id]


def random_alike(vectors: Mapping[str, ConceptVector], seed: int) -> dict[str, ConceptVector]:
    """Rotates vectors at random as a whole, keeping their scales: a control of equal dose.

    The same strengths add the same norm at every layer, and any two directions keep their cosine, those of two layers as
    well as those of two vectors, so that what they add accumulates alike. V (d_model, direction) = Q R; the control is
    Q' R, Q' (d_model, k) a random orthonormal basis.
    """
    places = [(name, layer) for name, vector in vectors.items() for layer in sorted(vector.layers)]
    directions = torch.stack([vectors[name].layers[layer].direction for name, layer in places], dim=1).double()
    mixing = torch.linalg.qr(directions)[1]
    generator = torch.Generator().manual_seed(seed % 2**63)
    noise = torch.randn(len(directions), len(mixing), generator=generator, dtype=torch.float64)
    basis, triangle = torch.linalg.qr(noise)
    # the decomposition chooses signs by the first coordinate, which would leave out the opposite of every direction
    rotated = (basis * triangle.diagonal().sign() @ mixing).float()
    columns = dict(zip(places, (rotated / rotated.norm(dim=0)).T, strict=True))
    return {
        name: _with_directions(vector, {at: columns[name, at] for at in vector.layers})
        for name, vector in vectors.items()
    }


def random_at_each_layer(vector: ConceptVector, seed: int) -> ConceptVector:
    """Returns a control for steering one layer at a time: a random direction at every layer, drawn by itself, with the vector's scales."""
    single = {layer: replace(vector, layers={layer: entry}) for layer, entry in vector.layers.items()}
    drawn = {layer: random_like(one, mix(seed, layer)).layers[layer].direction for layer, one in single.items()}
    return _with_directions(vector, drawn)


def _with_directions(vector: ConceptVector, directions: Mapping[int, Direction]) -> ConceptVector:
    """Replaces the directions of a vector; what was measured of its own does not hold for them."""
    layers = {layer: LayerDirection(one, scale=vector.layers[layer].scale) for layer, one in directions.items()}
    return replace(vector, layers=layers, method="random", sha256="", quality=None, recommended=None)


def resolved(
    engine: Engine,
    request: StrengthsRequest,
    prompts: int,
    controls: Callable[[int], int],
    control: Callable[[ConceptVector, int], ConceptVector] = random_like,
) -> Setup:
    """Resolves a request. prompts: how many neutral ones where none are given. controls: layers -> how many controls;
    control: makes one of them from the vector and a seed. The strengths are ascending, each once, without 0, which every
    evaluation includes.

    Raises InvalidRequest for invalid strengths, layers, prompts or scorer, VectorModelMismatch for another model's vector.
    """
    vector, seed = request.vector, request.sampling.seed
    reading = read_back(engine, vector, request.reader, request.reading_layer, request.scorer)
    layers = resolve_layers(request.layers, vector, engine.info.layer_count)
    asked = evaluation_prompts(engine, request.prompts, prompts)
    strengths = sorted({float(strength) for strength in request.strengths} - {0.0})
    if not strengths:
        raise InvalidRequest("a sweep needs at least one strength other than 0", param="strengths")
    arms = [vector, *(control(vector, seed + 1 + i) for i in range(controls(len(layers))))]
    return Setup(reading, layers, asked, strengths, arms)
