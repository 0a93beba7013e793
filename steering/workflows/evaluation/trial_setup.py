"""What an evaluation asks, and how it reads the answers back."""

from collections.abc import Sequence
from dataclasses import dataclass

from steering.concepts.loader import load_neutral
from steering.engine.api import Engine, Prompt
from steering.errors import InvalidRequest
from steering.extraction.card import best_layer
from steering.pairs import ChatMessage
from steering.plan.layers import check_model
from steering.vectors import ConceptVector, LayerDirection
from steering.workflows.evaluation.scorers import SCORERS


@dataclass(frozen=True, slots=True, eq=False)
class ReadBack:
    """Where and how an answer's concept is read: the unsteered model at `layer`, along the direction of `entry`."""

    layer: int
    entry: LayerDirection
    scorer: str = "projection"


def read_back(
    engine: Engine, vector: ConceptVector, reader: ConceptVector | None, layer: int | None, scorer: str
) -> ReadBack:
    """reader None: the vector itself. layer None: where the reader's card says it reads best.

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
        raise InvalidRequest(f"vector {reading.name!r} carries no probe at layer {layer}", param="scorer")
    return ReadBack(layer, entry, scorer)


def reading_layer(vector: ConceptVector, layer_count: int) -> int:
    """Where its card says that it reads best; where nothing was measured, the layer it steers at."""
    card = vector.quality
    return best_layer(card.layers, layer_count) if card and card.layers else vector.recommended_layers()[0]


def questions(engine: Engine, given: tuple[Prompt, ...] | None, count: int) -> tuple[Prompt, ...]:
    """The prompts given, or the first `count` of the package's neutral ones. Raises InvalidRequest for none."""
    if given is None:
        return asked(engine, load_neutral()[:count])
    if not given:
        raise InvalidRequest("an evaluation needs at least one prompt", param="prompts")
    return given


def asked(engine: Engine, texts: Sequence[str]) -> tuple[Prompt, ...]:
    """Questions as the model is asked them: a user's message where it has a chat template, else plain text."""
    if not engine.info.chat_template:
        return tuple(texts)
    return tuple((ChatMessage("user", text),) for text in texts)


def steered_strengths(given: Sequence[float]) -> list[float]:
    """Ascending, each once, without 0, which every evaluation has anyway. Raises InvalidRequest where none is left."""
    strengths = sorted({float(strength) for strength in given} - {0.0})
    if not strengths:
        raise InvalidRequest("a sweep needs at least one strength other than 0", param="strengths")
    return strengths
