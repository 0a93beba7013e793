"""Request and response models of POST /v1/readout."""

from typing import Annotated

from pydantic import Field

from steering.schemas.base import Answer, Measured
from steering.schemas.messages import TextsFields
from steering.schemas.vectors import Name
from steering.spec import Layers


class ReadoutRequest(TextsFields):
    """Exactly one of `texts` (each a plain text or a conversation) and `messages` (one conversation)."""

    vectors: Annotated[tuple[Name, ...], Field(min_length=1, max_length=64, fail_fast=True)]
    layers: Layers = "recommended"


class ReadVector(Answer):
    """The version of a vector that was used."""

    id: str
    sha256: str


class ReadToken(Answer):
    """A token of a text that was read."""

    id: int
    text: str


class LayerScores(Answer):
    """One score per token, in natural scales, centred so that the poles lie at +0.5 and -0.5. mean and max leave out the first
    token, whose residual belongs to no word. centred: false for a vector without class means, whose scores are p / kappa."""

    scores: list[Measured]
    mean: Measured
    max: Measured
    last: Measured
    centred: bool = True


class TextReadoutAnswer(Answer):
    """One text. readout: vector (by the name given) -> layer -> scores."""

    tokens: list[ReadToken]
    readout: dict[str, dict[str, LayerScores]]


class ReadoutAnswer(Answer):
    """Texts in the order given."""

    model: str
    vectors: dict[str, ReadVector]
    texts: list[TextReadoutAnswer]
