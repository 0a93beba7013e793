"""Request and response models of /v1/vectors."""

from typing import Annotated, Any

from pydantic import Field

from steering.cards import QualityCard, Recommended
from steering.namespaces import SHARED
from steering.schemas.base import Answer, NamespacePageQuery, NamespaceQuery, Page, Request
from steering.spec import Directions, LayerIndex, Measured, Number, Scales

Name = Annotated[str, Field(max_length=128)]
Description = Annotated[str, Field(max_length=4096)]
Tags = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=64)], ...], Field(max_length=32, fail_fast=True)]


class NamedVector(Request):
    """What a new vector is called, and its labels."""

    name: Name
    description: Description = ""
    tags: Tags = ()


class RegisterRequest(NamedVector):
    """Given directions, d_model numbers per layer. scale: the natural scale; absent, the length of the numbers given."""

    directions: Directions
    scale: Scales | None = None


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
    """A vector without its directions. scale: natural scale per layer; means: class means, in residual units.
    centred: whether scores in natural scales are centred between the means (false without them)."""

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
    """A vector with its numbers: unit directions by layer."""

    directions: dict[str, list[float]]


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
