"""Request and response models of /v1/latent-space, /v1/clusters and /v1/dictionaries."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from steering.schemas.base import Answer, Flag, Request, Whole
from steering.schemas.messages import MAX_TEXTS, Position, Texts
from steering.schemas.reading import ReadToken, ReadVector
from steering.schemas.vectors import LayerList, Name, NamedVector
from steering.spec import Measured, Number, exactly_one

Names: TypeAlias = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=128)], ...], Field(max_length=MAX_TEXTS, fail_fast=True)
]
"""One name per text."""


class LatentSpaceRequest(Request):
    """Texts to project, with a label each if their separability is measured.
    groups: texts of one group, such as the two of a pair, stay in one fold. vectors: drawn where the projection is linear.
    path: index of a text to follow through the layers. embeddings: project the input embeddings too."""

    texts: Texts
    labels: Names | None = None
    groups: Names | None = None
    layers: Literal["all"] | LayerList = "all"
    method: Annotated[str, Field(max_length=64)] = "pca"
    dims: Annotated[Whole, Field(ge=2, le=3)] = 2
    position: Position = "last"
    vectors: Annotated[tuple[Name, ...], Field(max_length=64, fail_fast=True)] = ()
    path: Annotated[Whole, Field(ge=0, le=1_000_000)] | None = None
    embeddings: Flag = False
    seed: Annotated[int, Field(strict=True, ge=0, le=2**32 - 1)] = 0


Point: TypeAlias = list[Measured]


class SegmentAnswer(Answer):
    """A vector in the projection, one natural scale long, from its negative to its positive pole.
    visible: share of its length in the projected plane."""

    vector: str
    start: Point
    end: Point
    visible: Measured


class SeparabilityAnswer(Answer):
    """How well the labels are separated in the full space, not in the projection.
    auroc: of a linear classifier on held-out groups; null where a label has fewer than two groups."""

    auroc: Measured | None
    auroc_interval: tuple[Measured, Measured] | None = None
    silhouette: Measured | None


class LayerMapAnswer(Answer):
    """One layer, one point per text. layer null: the input embeddings. explained_variance: by axis, where it is linear."""

    layer: int | None
    points: list[Point]
    explained_variance: list[Measured] | None
    separability: SeparabilityAnswer | None
    segments: list[SegmentAnswer]


class PathAnswer(Answer):
    """One text from layer to layer, and the mean of all texts."""

    layers: list[int]
    text: list[Point]
    mean: list[Point]
    explained_variance: list[Measured]


class LatentSpaceAnswer(Answer):
    """Maps by layer, ascending. The warnings name what could not be drawn."""

    model: str
    method: str
    vectors: dict[str, ReadVector]
    layers: list[LayerMapAnswer]
    embedding: LayerMapAnswer | None
    path: PathAnswer | None
    warnings: list[str]


class ClustersRequest(Request):
    """Texts to group by their activations at one layer. layer: absent, the middle one. examples: texts listed per cluster.
    clusters: how many (`kmeans`); absent, the best number from 2 to 10. min_size: of the smallest cluster (`hdbscan`)."""

    texts: Texts
    layer: Annotated[Whole, Field(ge=-1000, le=1000)] | None = None
    method: Literal["kmeans", "hdbscan"] = "kmeans"
    clusters: Annotated[Whole, Field(ge=2, le=32)] | None = None
    min_size: Annotated[Whole, Field(ge=2, le=10_000)] | None = None
    position: Position = "mean"
    examples: Annotated[Whole, Field(ge=1, le=50)] = 5
    seed: Annotated[int, Field(strict=True, ge=0, le=2**32 - 1)] = 0

    @model_validator(mode="after")
    def _fields_of_the_method(self) -> "ClustersRequest":
        if self.method == "kmeans" and self.min_size is not None:
            raise ValueError("'min_size' belongs to method 'hdbscan'")
        if self.method == "hdbscan" and self.clusters is not None:
            raise ValueError("'clusters' belongs to method 'kmeans'; 'hdbscan' finds their number")
        return self


class ExampleText(Answer):
    """A text of a cluster. text: its beginning; of a conversation that of the last message."""

    index: int
    text: str


class ClusterAnswer(Answer):
    """One cluster. examples: the texts nearest to its centre, nearest first."""

    index: int
    size: int
    examples: list[ExampleText]


class NearestVector(Answer):
    """The vector nearest to a difference of centres; a negative cosine means that it points the other way."""

    vector: str
    cosine: Measured


class PairAnswer(Answer):
    """Two clusters, the distance of their centres, and the vector nearest to the difference; null if none has this layer."""

    clusters: tuple[int, int]
    distance: Measured
    nearest: NearestVector | None


class ClustersAnswer(Answer):
    """labels: the cluster of each text, -1 for none. clusters: the largest first.
    silhouette: of the labelled texts, -1 to 1; null with fewer than two clusters."""

    model: str
    layer: int
    method: str
    labels: list[int]
    silhouette: Measured | None
    clusters: list[ClusterAnswer]
    pairs: list[PairAnswer]
    warnings: list[str]


class DictionaryAnswer(Answer):
    """A dictionary. layer: its features are directions after this block. problem: why it cannot be used with the model."""

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
    """Exactly one of `vector` (features near it) and `texts` (features more active there than in `against`, or neutral texts).
    min_output_score: only features that make the model say what they promote; of the 64 best."""

    vector: Annotated[str, Field(max_length=128)] | None = None
    texts: Texts | None = None
    against: Texts | None = None
    top: Annotated[Whole, Field(ge=1, le=64)] = 20
    min_output_score: Annotated[Number, Field(ge=0, le=1)] | None = None

    _one_query = exactly_one("vector", "texts")

    @model_validator(mode="after")
    def _against_texts(self) -> "DictionarySearchRequest":
        if self.against is not None and self.texts is None:
            raise ValueError("'against' belongs to 'texts'")
        return self


class FeatureAnswer(Answer):
    """score: cosine with the vector, or the difference of mean activations. promoted: most promoted first.
    output_score: rise of the probability of a promoted token when the feature is added; null where it was not asked."""

    feature: int
    score: Measured
    promoted: list[ReadToken]
    output_score: Measured | None = None


class DictionarySearchAnswer(Answer):
    """Features, best first."""

    dictionary: str
    layer: int
    features: list[FeatureAnswer]


class FeatureVectorRequest(NamedVector):
    """Stores a feature's direction as a vector."""

    feature: Annotated[Whole, Field(ge=0, le=10_000_000)]
