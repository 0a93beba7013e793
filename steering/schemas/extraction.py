"""Request models of POST /v1/vectors/extract."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from steering.schemas.base import NamespaceQuery, Number, Request
from steering.schemas.messages import MAX_TEXTS, Text, Texts
from steering.schemas.vectors import Description, LayerList, Name, Tags


class Pair(Request):
    """A positive and a negative text that differ in the concept. topic: pairs that are held out together."""

    positive: Text
    negative: Text
    topic: Annotated[str, Field(max_length=256)] | None = None


class TraitDescription(Request):
    """A trait in words and its opposite; the loaded model writes the contrasting answers itself."""

    trait: Annotated[str, Field(min_length=1, max_length=2000)]
    opposite: Annotated[str, Field(min_length=1, max_length=2000)]


class Training(Request):
    """How method `trained` fits its direction; what is left out is as the library has it. kl_coefficient: what a nat of divergence
    per token of neutral answers counts against the concept; 0 for no neutral answers at all."""

    steps: Annotated[int, Field(strict=True, ge=1, le=2000)] | None = None
    batch: Annotated[int, Field(strict=True, ge=1, le=64)] | None = None
    learning_rate: Annotated[Number, Field(gt=0, le=1)] | None = None
    strengths: tuple[Annotated[Number, Field(gt=0, le=100)], Annotated[Number, Field(gt=0, le=100)]] | None = None
    kl_coefficient: Annotated[Number, Field(ge=0, le=1000)] | None = None

    @model_validator(mode="after")
    def _low_to_high(self) -> "Training":
        if self.strengths is not None and self.strengths[0] > self.strengths[1]:
            raise ValueError("'strengths' go from low to high")
        return self


class ExtractRequest(Request):
    """Exactly one source: `pairs`, `concept` (a starter concept), `positive` with `negative`, or `describe`. position: which
    activation of a text is read; null for `response_mean` where all texts are conversations, `last` where none is, else `mean`."""

    name: Name
    description: Description = ""
    tags: Tags = ()
    pairs: Annotated[tuple[Pair, ...], Field(min_length=1, max_length=MAX_TEXTS, fail_fast=True)] | None = None
    concept: Annotated[str, Field(max_length=64)] | None = None
    positive: Texts | None = None
    negative: Texts | None = None
    describe: TraitDescription | None = None
    method: Annotated[str, Field(max_length=64)] = "mean_difference"
    layers: Literal["all"] | LayerList = "all"
    position: (
        Literal["last", "mean", "response_mean"] | Annotated[int, Field(strict=True, ge=-100_000, le=-1)] | None
    ) = None
    holdout: Annotated[Number, Field(ge=0, lt=1)] = 0.3
    seed: Annotated[int, Field(strict=True, ge=0, le=2**63 - 1)] = 0
    training: Training | None = None

    @model_validator(mode="after")
    def _one_source(self) -> "ExtractRequest":
        if (self.positive is None) != (self.negative is None):
            raise ValueError("'positive' and 'negative' come together")
        given = [name for name in ("pairs", "concept", "positive", "describe") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("give exactly one of 'pairs', 'concept', 'positive' with 'negative', and 'describe'")
        return self


class ExtractQuery(NamespaceQuery):
    """wait: hold the connection until the vector is made, instead of answering with a job."""

    wait: bool = False
