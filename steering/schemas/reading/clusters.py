"""Request and response models of POST /v1/clusters."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from steering.schemas.base import Answer, Measured, Request, Whole
from steering.schemas.messages import Texts
from steering.schemas.reading.latent_space import Position


class ClustersRequest(Request):
    """Texts to group by their activations at one layer. clusters: how many (`kmeans`); absent, the number from 2 to 10 with the best
    silhouette. min_size: the smallest cluster (`hdbscan`). examples: texts listed per cluster. layer: absent, the middle one."""

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
    """The vector whose direction is nearest to a difference of centres; a negative cosine means that it points the other way."""

    vector: str
    cosine: Measured


class PairAnswer(Answer):
    """Two clusters, the distance of their centres, and the nearest vector to the difference from the first to the second; null where no
    vector of the library has this layer."""

    clusters: tuple[int, int]
    distance: Measured
    nearest: NearestVector | None


class ClustersAnswer(Answer):
    """labels: the cluster of each text, -1 for none (`hdbscan`). Clusters by size, the largest first. silhouette: of the labelled
    texts, -1 to 1; null with fewer than two clusters."""

    model: str
    layer: int
    method: str
    labels: list[int]
    silhouette: Measured | None
    clusters: list[ClusterAnswer]
    pairs: list[PairAnswer]
    warnings: list[str]
