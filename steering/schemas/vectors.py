"""Request and response models of /v1/vectors."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from steering.cards import MapForm, QualityCard, Recommended
from steering.namespaces import SHARED
from steering.schemas.base import Answer, NamespacePageQuery, NamespaceQuery, Page, Request
from steering.spec import (
    MAX_LAYERS,
    MAX_RANK,
    Activation,
    Directions,
    LayerIndex,
    LayerKey,
    Measured,
    Number,
    Numbers,
    Scales,
    at_most,
)

MAX_METADATA_BYTES = 64 << 10
"""Metadata of a file that is imported: all but its tensors. Stored vectors, and with them exported ones, may have more."""
Name = Annotated[str, Field(max_length=128)]
Description = Annotated[str, Field(max_length=4096)]
Tags = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=64)], ...], Field(max_length=32, fail_fast=True)]


class NamedVector(Request):
    """What a new vector is called, and its labels."""

    name: Name
    description: Description = ""
    tags: Tags = ()


MapRows = Annotated[tuple[Numbers, ...], Field(min_length=1, max_length=MAX_RANK, fail_fast=True)]


class MapNumbers(Request):
    """A map at one layer, r' = r + strength * sum of phi(read_i . r + bias_i) write_i, of up to 16 pairs of directions.
    read, write: d_model numbers each. bias: absent, zeros. activation: phi."""

    read: MapRows
    write: MapRows
    bias: Annotated[tuple[Number, ...], Field(min_length=1, max_length=MAX_RANK, fail_fast=True)] | None = None
    activation: Activation = "linear"

    @model_validator(mode="after")
    def _one_rank(self) -> "MapNumbers":
        counts = {"read": len(self.read), "write": len(self.write)}
        counts |= {} if self.bias is None else {"bias": len(self.bias)}
        if len(set(counts.values())) > 1:
            raise ValueError(f"a map has as many entries in each of {counts}, one for each pair of directions")
        return self


Maps = Annotated[dict[LayerKey, MapNumbers], Field(min_length=1, max_length=MAX_LAYERS), at_most(MAX_LAYERS)]


class RegisterRequest(NamedVector):
    """Given directions, d_model numbers per layer, given maps, or both. scale: the natural scale; absent, the length of the numbers
    given. A layer that has a map alone gets the direction along which the map writes most."""

    directions: Directions | None = None
    scale: Scales | None = None
    maps: Maps | None = None

    @model_validator(mode="after")
    def _something(self) -> "RegisterRequest":
        if self.directions is None and self.maps is None:
            raise ValueError("give 'directions', 'maps' or both")
        return self


class Term(Request):
    """One vector and how much of it, in natural scales."""

    vector: Name
    weight: Number = 1.0


class CombineRequest(NamedVector):
    """A weighted sum, made orthogonal to others if asked."""

    terms: Annotated[tuple[Term, ...], Field(min_length=1, max_length=32, fail_fast=True)]
    orthogonal_to: Annotated[tuple[Name, ...], Field(max_length=32, fail_fast=True)] = ()


class DescribeRequest(Request):
    """Changes description or tags. An absent field is unchanged."""

    description: Description | None = None
    tags: Tags | None = None


class VectorQuery(NamespacePageQuery):
    """Every given field must match; `search` is a literal part of name or description."""

    tag: Annotated[str, Field(max_length=64)] | None = None
    method: Annotated[str, Field(max_length=64)] | None = None
    search: Annotated[str, Field(max_length=256)] | None = None


class VersionQuery(NamespaceQuery):
    """One version; absent, the newest."""

    version: Annotated[int, Field(ge=1, le=999_999_999)] | None = None


class DirectionsQuery(VersionQuery):
    """`layers=12,13`: those layers only."""

    layers: Annotated[str, Field(pattern=r"^[0-9]{1,4}(,[0-9]{1,4}){0,511}$")] | None = None


class ExportQuery(VersionQuery):
    """format: `safetensors` (as import takes it), `gguf` (a llama.cpp control vector) or `json`.
    layers: for gguf, `recommended` (default), `all` or `12,13`; llama.cpp adds every direction in the file."""

    format: Annotated[str, Field(max_length=32)] = "safetensors"
    layers: Annotated[str, Field(pattern=r"^(recommended|all|[0-9]{1,4}(,[0-9]{1,4}){0,511})$")] | None = None


class ImportQuery(NamespaceQuery):
    """The name under which the file is stored; absent, the name inside it."""

    name: Name | None = None


class DeleteQuery(VersionQuery):
    """force: delete even if a profile, the default steering or the policy names it."""

    force: bool = False


class VersionsQuery(NamespaceQuery):
    """A page of versions. before: only versions below this number."""

    limit: Annotated[int, Field(ge=1, le=200)] = 50
    before: Annotated[int, Field(ge=1, le=999_999_999)] | None = None


class VectorAnswer(Answer):
    """A vector without its numbers. scale: natural scale per layer; means: class means, in residual units.
    centred: whether scores in natural scales are centred between the means (false without them).
    kl: by calibrated layer the strengths below and above 0 that change neutral text by 1 nat, the size of unit `kl`.
    maps: rank and activation of its maps, which operation `apply` adds, by layer; empty for a vector without."""

    namespace: str = SHARED
    name: str
    version: int
    id: str
    description: str
    tags: list[str]
    model: str
    d_model: int
    layers: list[int]
    method: str
    scale: dict[str, Measured]
    means: dict[str, tuple[Measured, Measured]]
    centred: bool = False
    kl: dict[str, tuple[Measured | None, Measured | None]] = Field(default_factory=dict)
    maps: dict[str, MapForm] = Field(default_factory=dict)
    sha256: str
    created_at: str
    recommended: Recommended
    quality: QualityCard | None
    provenance: dict[str, Any]


class VectorPageAnswer(Page):
    """The newest version of each name, by name. warnings: what is left out because it is damaged."""

    data: list[VectorAnswer]
    warnings: tuple[str, ...] = ()


class VectorVersionAnswer(Answer):
    """One version of a vector. auroc: at the middle of its recommended layers, where the card has it."""

    namespace: str
    id: str
    version: int
    created_at: str
    method: str
    layers: list[int]
    sha256: str
    recommended: Recommended
    auroc: Measured | None


class VectorVersionsAnswer(Answer):
    """Versions of a vector, newest first. next_before: the `before` of the next page. warnings: damaged versions."""

    data: list[VectorVersionAnswer]
    next_before: int | None
    warnings: tuple[str, ...] = ()


class VectorExport(VectorAnswer):
    """A vector with its numbers: unit directions by layer, and the numbers of its maps."""

    directions: dict[str, list[float]]
    map_numbers: dict[str, MapNumbers] = Field(default_factory=dict)


class SimilarVector(Answer):
    """Cosine with one other vector, per layer that both have, and the mean of them."""

    namespace: str = SHARED
    id: str
    cosine: dict[str, Measured]
    mean: Measured


class SimilarAnswer(Answer):
    """Every other vector of the model, most similar first by absolute mean cosine. warnings: damaged vectors."""

    data: list[SimilarVector]
    warnings: tuple[str, ...] = ()


LayerList = Annotated[tuple[LayerIndex, ...], Field(min_length=1, max_length=256, fail_fast=True)]
