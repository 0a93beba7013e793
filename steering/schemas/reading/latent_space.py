"""Request and response models of POST /v1/latent-space."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from steering.schemas.base import Answer, Flag, Measured, Request, Whole
from steering.schemas.messages import MAX_TEXTS, Texts
from steering.schemas.reading.readout import ReadVector
from steering.schemas.vectors import LayerList, Name

Position: TypeAlias = Literal["last", "mean", "response_mean"] | Annotated[int, Field(strict=True, ge=-100_000, le=-1)]
Names: TypeAlias = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=128)], ...], Field(max_length=MAX_TEXTS, fail_fast=True)
]
"""One name per text."""


class LatentSpaceRequest(Request):
    """Texts to project, with a label each if their separability is measured. groups: one per text; texts of one group, such
    as the two of a pair, stay in one fold. vectors: drawn where the projection is linear. path: index of a text to follow
    through the layers. embeddings: project the input embeddings too."""

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
    """A vector in the projection, one natural scale long, from its negative to its positive pole through the mean of the
    points. visible: share of its length in the projected plane."""

    vector: str
    start: Point
    end: Point
    visible: Measured


class SeparabilityAnswer(Answer):
    """How well the labels are separated in the full space, not in the projection. auroc: of a linear classifier on groups it
    was not fitted on, with its 95 % interval; null where a label has fewer than two examples."""

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
