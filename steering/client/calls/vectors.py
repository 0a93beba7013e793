"""Calls about vectors: made, combined, imported, listed, read, exported, described, deleted."""

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias, TypedDict, Unpack

from pydantic import TypeAdapter

from steering.client.calls.base import Call, Text, VectorWords, Words, at, given, model, nothing, whole
from steering.schemas.extraction import Pair, Training, TraitDescription
from steering.schemas.jobs import JobAnswer
from steering.schemas.vectors import SimilarAnswer, Term, VectorAnswer, VectorExport, VectorPageAnswer

Directions: TypeAlias = dict[str, list[float]]


class ExtractOptions(VectorWords, total=False):
    """What a vector is made of (one source of the first five) and how."""

    pairs: Sequence[Pair | Words]
    concept: str
    positive: Sequence[Text]
    negative: Sequence[Text]
    describe: TraitDescription | Words
    method: str
    layers: Literal["all"] | Sequence[int]
    position: str | int
    holdout: float
    seed: int
    training: Training | Words


class VectorFilters(TypedDict, total=False):
    """Which vectors to list."""

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
    **words: Unpack[VectorWords],
) -> Call[VectorAnswer]:
    """Keeps given directions, one list of d_model numbers a layer, as the next version of a name."""
    body = given(name=name, directions=directions, scale=scale, **words)
    return Call("POST", "/v1/vectors", model(VectorAnswer), body)


def extract_vector(name: str, **options: Unpack[ExtractOptions]) -> Call[VectorAnswer]:
    """Makes a vector from contrasting texts and waits for it."""
    body = given(name=name, **options)
    return Call("POST", "/v1/vectors/extract", model(VectorAnswer), body, query={"wait": True})


def start_extraction(name: str, **options: Unpack[ExtractOptions]) -> Call[JobAnswer]:
    """Makes a vector as a job; follow it with `job_events`."""
    return Call("POST", "/v1/vectors/extract", model(JobAnswer), given(name=name, **options))


def combine_vectors(
    name: str, terms: Sequence[Term | Words], *, orthogonal_to: Sequence[str] = (), **words: Unpack[VectorWords]
) -> Call[VectorAnswer]:
    """A weighted sum of vectors, made orthogonal to others if asked."""
    body = given(name=name, terms=terms, orthogonal_to=orthogonal_to, **words)
    return Call("POST", "/v1/vectors/combine", model(VectorAnswer), body)


def import_vector(content: bytes, *, name: str | None = None) -> Call[VectorAnswer]:
    """Keeps the vector in one safetensors file, under its own name or another."""
    return Call("POST", "/v1/vectors/import", model(VectorAnswer), content=content, query=given(name=name))


def list_vectors(**filters: Unpack[VectorFilters]) -> Call[VectorPageAnswer]:
    """The newest version of each name; go on with `cursor=page.next_cursor`."""
    return Call("GET", "/v1/vectors", model(VectorPageAnswer), query=given(**filters))


def get_vector(name: str) -> Call[VectorAnswer]:
    """Metadata and quality card of `name` or `name@version`."""
    return Call("GET", at("/v1/vectors/{}", name), model(VectorAnswer))


def get_directions(name: str, layers: Sequence[int] | None = None) -> Call[Directions]:
    """The numbers: unit directions by layer."""
    query = {} if layers is None else {"layers": ",".join(map(str, layers))}
    adapter = TypeAdapter(Directions)
    return Call("GET", at("/v1/vectors/{}/directions", name), adapter.validate_json, query=query)


def export_vector(name: str) -> Call[bytes]:
    """The vector as one safetensors file."""
    return Call("GET", at("/v1/vectors/{}/export", name), whole, query={"format": "safetensors"})


def export_control_vector(
    name: str, layers: Literal["recommended", "all"] | Sequence[int] = "recommended"
) -> Call[bytes]:
    """The vector as a llama.cpp control vector (GGUF). llama.cpp adds every direction in the file at its scale."""
    chosen = layers if isinstance(layers, str) else ",".join(map(str, layers))
    return Call("GET", at("/v1/vectors/{}/export", name), whole, query={"format": "gguf", "layers": chosen})


def export_vector_words(name: str) -> Call[VectorExport]:
    """The vector in words, its numbers included."""
    return Call("GET", at("/v1/vectors/{}/export", name), model(VectorExport), query={"format": "json"})


def similar_vectors(name: str) -> Call[SimilarAnswer]:
    """Cosine with every other vector of the same model."""
    return Call("GET", at("/v1/vectors/{}/similar", name), model(SimilarAnswer))


def describe_vector(name: str, **words: Unpack[VectorWords]) -> Call[VectorAnswer]:
    """Changes what is said about a name, never its numbers."""
    return Call("PATCH", at("/v1/vectors/{}", name), model(VectorAnswer), given(**words))


def delete_vector(name: str, *, force: bool = False) -> Call[None]:
    """Deletes all versions; `force` although a profile names it."""
    return Call("DELETE", at("/v1/vectors/{}", name), nothing, query={"force": force})
