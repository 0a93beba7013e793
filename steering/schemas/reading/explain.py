"""Request and response models of POST /v1/explain."""

from typing import Annotated

from pydantic import Field

from steering.schemas.base import Answer, Measured, Number, Whole
from steering.schemas.messages import TextsFields
from steering.schemas.reading.readout import ReadVector
from steering.schemas.vectors import LayerList


class ExplainRequest(TextsFields):
    """Exactly one of `texts` and `messages` (one conversation). layers: where every vector is read; absent, at the middle of its
    recommended layers. threshold: the least absolute z-score of a concept that is listed; top: how many are, at most."""

    layers: LayerList | None = None
    threshold: Annotated[Number, Field(ge=0, le=1000)] = 2.0
    top: Annotated[Whole, Field(ge=1, le=100)] = 10


class CarryingTokenAnswer(Answer):
    """A token that carries a concept. index: its position in the text. z: against the tokens of neutral text."""

    index: int
    id: int
    text: str
    z: Measured


class StandingConceptAnswer(Answer):
    """A concept that stands out. score: mean over the tokens without the first, in natural scales. z: its distance from the mean of
    neutral texts, in their standard deviations; negative towards the negative pole. tokens: those that carry it most."""

    vector: str
    layer: int
    score: Measured
    z: Measured
    tokens: list[CarryingTokenAnswer]


class ExplainedTextAnswer(Answer):
    """One text; empty where nothing stands out."""

    tokens: int
    concepts: list[StandingConceptAnswer]


class ExplainAnswer(Answer):
    """Texts in the order given. vectors: every vector that was read, by id. neutral: how many neutral texts there are."""

    model: str
    vectors: dict[str, ReadVector]
    neutral: int
    texts: list[ExplainedTextAnswer]
    warnings: list[str]
