"""Calls for creating, combining, importing, listing, reading, exporting and deleting vectors."""

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias, TypedDict, Unpack

from pydantic import TypeAdapter

from steering.client.calls.base import WAIT, Call, JsonObject, Text, VectorDescription, call, delete, path_of
from steering.client.results import Vector
from steering.schemas.extraction import EffectRequest, Pair, Training, TraitDescription, TransferAnswer
from steering.schemas.resources import JobAnswer
from steering.schemas.vectors import SimilarAnswer, Term, VectorExport, VectorPageAnswer, VectorVersionsAnswer

Directions: TypeAlias = dict[str, list[float]]


class ExtractOptions(VectorDescription, total=False):
    """Options of an extraction: one source (one of the first five) and the method."""

    pairs: Sequence[Pair | JsonObject]
    concept: str
    positive: Sequence[Text]
    negative: Sequence[Text]
    describe: TraitDescription | JsonObject
    method: str
    layers: Literal["all"] | Sequence[int]
    position: str | int
    holdout: float
    seed: int
    training: Training | JsonObject


class TransferOptions(VectorDescription, total=False):
    """Options of a transfer: one of `concept` and `pairs`, and what is not left to the server."""

    concept: str
    pairs: Sequence[Pair | JsonObject]
    anchors: Sequence[Text]
    direction: Sequence[float]
    from_layer: int
    to_layer: int
    position: str | int
    holdout: float
    seed: int
    effect: EffectRequest | JsonObject


class VectorFilters(TypedDict, total=False):
    """Filters of a list of vectors."""

    tag: str
    method: str
    search: str
    limit: int
    cursor: str


def register_vector(
    name: str,
    directions: Mapping[str, Sequence[float]],
    *,
    scale: Mapping[str, float] | None = None,
    **description: Unpack[VectorDescription],
) -> Call[Vector]:
    """Stores given directions, d_model numbers per layer, as the next version of a name."""
    return call("POST", "/v1/vectors", Vector, name=name, directions=directions, scale=scale, **description)


def extract_vector(name: str, **options: Unpack[ExtractOptions]) -> Call[Vector]:
    """Extracts a vector from contrasting texts and waits for it."""
    return call("POST", "/v1/vectors/extract", Vector, WAIT, name=name, **options)


def start_extraction(name: str, **options: Unpack[ExtractOptions]) -> Call[JobAnswer]:
    """Starts an extraction as a job; follow it with `job_events`."""
    return call("POST", "/v1/vectors/extract", JobAnswer, name=name, **options)


def transfer_vector(name: str, **options: Unpack[TransferOptions]) -> Call[TransferAnswer]:
    """Carries a direction of the server's second model to the loaded one, and waits for it."""
    return call("POST", "/v1/vectors/transfer", TransferAnswer, WAIT, name=name, **options)


def start_transfer(name: str, **options: Unpack[TransferOptions]) -> Call[JobAnswer]:
    """Starts a transfer as a job; follow it with `job_events`."""
    return call("POST", "/v1/vectors/transfer", JobAnswer, name=name, **options)


def combine_vectors(
    name: str,
    terms: Sequence[Term | JsonObject],
    *,
    orthogonal_to: Sequence[str] = (),
    **description: Unpack[VectorDescription],
) -> Call[Vector]:
    """Stores a weighted sum of vectors, orthogonal to those named in `orthogonal_to`."""
    return call(
        "POST", "/v1/vectors/combine", Vector, name=name, terms=terms, orthogonal_to=orthogonal_to, **description
    )


def import_vector(content: bytes, *, name: str | None = None) -> Call[Vector]:
    """Stores the vector of one safetensors file, under its own name or another."""
    query = {} if name is None else {"name": name}
    return Call("POST", "/v1/vectors/import", Vector.model_validate_json, content=content, query=query)


def list_vectors(**filters: Unpack[VectorFilters]) -> Call[VectorPageAnswer]:
    """Lists the newest version of each name; continue with `cursor=page.next_cursor`."""
    return call("GET", "/v1/vectors", VectorPageAnswer, **filters)


def get_vector(name: str) -> Call[Vector]:
    """Returns metadata and quality card of `name` or `name@version`."""
    return call("GET", path_of("/v1/vectors/{}", name), Vector)


def get_directions(name: str, layers: Sequence[int] | None = None) -> Call[Directions]:
    """Returns the unit directions by layer."""
    query = {} if layers is None else {"layers": ",".join(map(str, layers))}
    adapter = TypeAdapter(Directions)
    return Call("GET", path_of("/v1/vectors/{}/directions", name), adapter.validate_json, query=query)


def export_vector(name: str) -> Call[bytes]:
    """Exports a vector as one safetensors file."""
    return Call("GET", path_of("/v1/vectors/{}/export", name), bytes, query={"format": "safetensors"})


def export_control_vector(
    name: str, layers: Literal["recommended", "all"] | Sequence[int] = "recommended"
) -> Call[bytes]:
    """Exports a vector as a llama.cpp control vector (GGUF). llama.cpp adds every direction in the file at its scale."""
    chosen = layers if isinstance(layers, str) else ",".join(map(str, layers))
    return Call("GET", path_of("/v1/vectors/{}/export", name), bytes, query={"format": "gguf", "layers": chosen})


def export_vector_json(name: str) -> Call[VectorExport]:
    """Exports a vector as JSON, with its directions."""
    return call("GET", path_of("/v1/vectors/{}/export", name), VectorExport, format="json")


def similar_vectors(name: str) -> Call[SimilarAnswer]:
    """Returns the cosine with every other vector of the same model."""
    return call("GET", path_of("/v1/vectors/{}/similar", name), SimilarAnswer)


def describe_vector(name: str, **description: Unpack[VectorDescription]) -> Call[Vector]:
    """Changes description and tags of a vector."""
    return call("PATCH", path_of("/v1/vectors/{}", name), Vector, **description)


def list_versions(name: str, *, limit: int = 50, before: int | None = None) -> Call[VectorVersionsAnswer]:
    """Lists the versions of a vector, newest first, below `before` if given."""
    return call("GET", path_of("/v1/vectors/{}/versions", name), VectorVersionsAnswer, limit=limit, before=before)


def delete_vector(name: str, *, version: int | None = None, force: bool = False) -> Call[None]:
    """Deletes all versions, or one; `force` deletes a vector that a profile uses."""
    return delete(path_of("/v1/vectors/{}", name), version=version, force=force)
