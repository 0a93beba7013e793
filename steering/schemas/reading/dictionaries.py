"""Request and response models of /v1/dictionaries: sparse autoencoders that the operator registered."""

from typing import Annotated

from pydantic import Field, model_validator

from steering.schemas.base import Answer, Measured, Number, Request, Whole
from steering.schemas.messages import Texts
from steering.schemas.vectors import Description, Name, Tags


class DictionaryAnswer(Answer):
    """A dictionary. layer: its features are directions of the residual stream after this block. problem: why it cannot be used with
    the loaded model; null where it can."""

    name: str
    layer: int | None = None
    features: int | None = None
    d_model: int | None = None
    architecture: str | None = None
    hook: str | None = None
    model: str | None = None
    problem: str | None = None


class DictionariesAnswer(Answer):
    """The dictionaries of the server."""

    data: list[DictionaryAnswer]


class DictionarySearchRequest(Request):
    """Exactly one of `vector` (features whose directions are near it) and `texts` (features that are more active in them than in
    `against`, by default neutral texts). min_output_score: only features that make the model say what they promote; of the 64 best."""

    vector: Annotated[str, Field(max_length=128)] | None = None
    texts: Texts | None = None
    against: Texts | None = None
    top: Annotated[Whole, Field(ge=1, le=64)] = 20
    min_output_score: Annotated[Number, Field(ge=0, le=1)] | None = None

    @model_validator(mode="after")
    def _one_query(self) -> "DictionarySearchRequest":
        if (self.vector is None) == (self.texts is None):
            raise ValueError("give exactly one of 'vector' and 'texts'")
        if self.against is not None and self.texts is None:
            raise ValueError("'against' belongs to 'texts'")
        return self


class PromotedToken(Answer):
    """A token that a feature's direction makes likelier at the output."""

    id: int
    text: str


class FeatureAnswer(Answer):
    """score: cosine with the vector, or the difference of mean activations. promoted: most promoted first. output_score: rise of the
    probability of a promoted token when the feature is added; null where it was not asked."""

    feature: int
    score: Measured
    promoted: list[PromotedToken]
    output_score: Measured | None = None


class DictionarySearchAnswer(Answer):
    """Features, best first."""

    dictionary: str
    layer: int
    features: list[FeatureAnswer]


class FeatureVectorRequest(Request):
    """Stores a feature's direction as a vector."""

    name: Name
    feature: Annotated[Whole, Field(ge=0, le=10_000_000)]
    description: Description = ""
    tags: Tags = ()
