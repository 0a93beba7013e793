"""Reading on the wire: readouts of texts, maps of activations, and the logit lens."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from steering.schemas.base import Answer, Flag, Measured, Request, Whole
from steering.schemas.extraction import Text
from steering.schemas.generation import Message, PromptFields
from steering.schemas.steering import Steering
from steering.schemas.vectors import LayerList, Name
from steering.spec import Layers

Texts: TypeAlias = Annotated[tuple[Text, ...], Field(min_length=1)]
Position: TypeAlias = Literal["last", "mean", "response_mean"] | Annotated[int, Field(strict=True, ge=-100_000, le=-1)]


class ReadoutRequest(Request):
    """Exactly one of `texts` (each a plain text or a conversation) and `messages` (one conversation)."""

    texts: Texts | None = None
    messages: Annotated[tuple[Message, ...], Field(min_length=1)] | None = None
    vectors: Annotated[tuple[Name, ...], Field(min_length=1)]
    layers: Layers = "recommended"

    @model_validator(mode="after")
    def _one_source(self) -> "ReadoutRequest":
        if (self.texts is None) == (self.messages is None):
            raise ValueError("give exactly one of 'texts' and 'messages'")
        return self


class ReadVector(Answer):
    """The version of a vector that was used."""

    id: str
    sha256: str


class ReadToken(Answer):
    """A token of a text that was read."""

    id: int
    text: str


class LayerScores(Answer):
    """One score a token, in natural scales. mean and max leave out the first token, whose residual belongs to no word."""

    scores: list[Measured]
    mean: Measured
    max: Measured
    last: Measured


class TextReadoutAnswer(Answer):
    """One text. readout: vector (by the name that was asked) -> layer -> scores."""

    tokens: list[ReadToken]
    readout: dict[str, dict[str, LayerScores]]


class ReadoutAnswer(Answer):
    """Texts in the order given."""

    model: str
    vectors: dict[str, ReadVector]
    texts: list[TextReadoutAnswer]


class LatentSpaceRequest(Request):
    """Texts, and a label for each if they are to be told apart. vectors: drawn where the projection is linear. path: index
    of a text to follow through the layers. embeddings: draw the input embeddings too, beside the layers."""

    texts: Texts
    labels: tuple[Annotated[str, Field(min_length=1, max_length=128)], ...] | None = None
    layers: Literal["all"] | LayerList = "all"
    method: Annotated[str, Field(max_length=64)] = "pca"
    dims: Annotated[Whole, Field(ge=2, le=3)] = 2
    position: Position = "last"
    vectors: tuple[Name, ...] = ()
    path: Annotated[Whole, Field(ge=0, le=1_000_000)] | None = None
    embeddings: Flag = False
    seed: Annotated[int, Field(strict=True, ge=0, le=2**32 - 1)] = 0


Point: TypeAlias = list[Measured]


class SegmentAnswer(Answer):
    """A vector in the picture, one natural scale long, from its negative to its positive pole through the middle of the
    points. visible: share of its length in the picture; near 0 it points out of the page."""

    vector: str
    start: Point
    end: Point
    visible: Measured


class SeparabilityAnswer(Answer):
    """How well the labels stand apart in the full space, not in the drawing. auroc: of a linear reading, on examples it was
    not fitted on; null where a label has fewer than two."""

    auroc: Measured | None
    silhouette: Measured | None


class LayerMapAnswer(Answer):
    """One layer, a point a text. layer null: the input embeddings. explained_variance: by axis, where it is linear."""

    layer: int | None
    points: list[Point]
    explained_variance: list[Measured] | None
    separability: SeparabilityAnswer | None
    segments: list[SegmentAnswer]


class PathAnswer(Answer):
    """One text from layer to layer, and the mean of all texts beside it."""

    layers: list[int]
    text: list[Point]
    mean: list[Point]
    explained_variance: list[Measured]


class LatentSpaceAnswer(Answer):
    """Maps by layer, ascending. What could not be drawn is named in the warnings."""

    model: str
    method: str
    vectors: dict[str, ReadVector]
    layers: list[LayerMapAnswer]
    embedding: LayerMapAnswer | None
    path: PathAnswer | None
    warnings: list[str]


class LogitLensRequest(PromptFields):
    """What the model would say if it stopped at a layer, at every token of the prompt. steering: absent is the server's
    default; with `[]` there is only the plain reading."""

    steering: Steering | None = None
    layers: Literal["all"] | LayerList = "all"
    top_k: Annotated[int, Field(strict=True, ge=1, le=1000)] = 5


class PredictionAnswer(Answer):
    """One of the likeliest next tokens."""

    id: int
    text: str
    logprob: Measured


class LensLayerAnswer(Answer):
    """One layer: at every token the likeliest next ones, best first. steered: null without steering."""

    layer: int
    plain: list[list[PredictionAnswer]]
    steered: list[list[PredictionAnswer]] | None


class LensSteering(Answer):
    """The steering of the steered reading. vectors: `name@version` -> SHA-256."""

    fingerprint: str
    vectors: dict[str, str]
    warnings: list[str]


class LogitLensAnswer(Answer):
    """Layers ascending; the last of all is the model itself."""

    model: str
    tokens: list[ReadToken]
    layers: list[LensLayerAnswer]
    steering: LensSteering | None
