"""Calls that read texts with the model: activations, scores, concepts that stand out, clusters, features of dictionaries."""

from collections.abc import Sequence
from typing import Literal, TypedDict, Unpack

from steering.client.calls.base import Call, Chat, Steering, Text, VectorDescription, call, json_fields, path_of
from steering.client.results import Vector
from steering.schemas.latent_space import ClustersAnswer, DictionariesAnswer, DictionarySearchAnswer
from steering.schemas.reading import ActivationsAnswer, ExplainAnswer, ScoreAnswer


class ActivationOptions(TypedDict, total=False):
    """Options of `activations`; see ActivationsRequest in steering/schemas/reading/activations.py."""

    messages: Chat
    token_ids: Sequence[Sequence[int]]
    layers: Literal["all"] | Sequence[int]
    position: str | int
    steering: Steering


class ClusterOptions(TypedDict, total=False):
    """Options of `clusters`; see ClustersRequest in steering/schemas/reading/clusters.py."""

    layer: int | None
    method: str
    clusters: int | None
    min_size: int | None
    position: str | int
    examples: int
    seed: int


def activations(
    texts: Sequence[Text] | None = None, *, dtype: str | None = None, **options: Unpack[ActivationOptions]
) -> Call[bytes]:
    """Returns the residual stream of texts as a safetensors file; read it with `safetensors.numpy.load`."""
    body = json_fields(texts=texts, dtype=dtype, **options)
    return Call("POST", "/v1/activations", bytes, body, accept="application/octet-stream")


def activations_json(
    texts: Sequence[Text] | None = None, **options: Unpack[ActivationOptions]
) -> Call[ActivationsAnswer]:
    """Returns the residual stream of a few texts as lists of numbers."""
    body = json_fields(texts=texts, **options)
    return Call("POST", "/v1/activations", ActivationsAnswer.model_validate_json, body, accept="application/json")


def score(
    prompt: str | Sequence[int] | None = None,
    continuations: Sequence[str] | None = None,
    *,
    messages: Chat | None = None,
    texts: Sequence[str] | None = None,
    steering: Steering | None = None,
) -> Call[ScoreAnswer]:
    """Returns log-probabilities of continuations of a prompt or conversation, or of whole texts."""
    body = {"prompt": prompt, "messages": messages, "continuations": continuations, "texts": texts}
    return call("POST", "/v1/score", ScoreAnswer, **body, steering=steering)


def explain(
    texts: Sequence[Text] | None = None,
    *,
    messages: Chat | None = None,
    layers: Sequence[int] | None = None,
    threshold: float | None = None,
    top: int | None = None,
) -> Call[ExplainAnswer]:
    """Returns the concepts of the library that stand out in texts, or in one conversation, against neutral text."""
    body = {"texts": texts, "messages": messages, "layers": layers, "threshold": threshold, "top": top}
    return call("POST", "/v1/explain", ExplainAnswer, **body)


def clusters(texts: Sequence[Text], **options: Unpack[ClusterOptions]) -> Call[ClustersAnswer]:
    """Groups texts without labels by their activations at one layer."""
    return call("POST", "/v1/clusters", ClustersAnswer, texts=texts, **options)


def list_dictionaries() -> Call[DictionariesAnswer]:
    """Lists the dictionaries of the server."""
    return call("GET", "/v1/dictionaries", DictionariesAnswer)


def search_dictionary(
    name: str,
    *,
    vector: str | None = None,
    texts: Sequence[Text] | None = None,
    against: Sequence[Text] | None = None,
    top: int = 20,
    min_output_score: float | None = None,
) -> Call[DictionarySearchAnswer]:
    """Finds features near a vector, or more active in texts than in others."""
    body = {"vector": vector, "texts": texts, "against": against, "top": top, "min_output_score": min_output_score}
    return call("POST", path_of("/v1/dictionaries/{}/search", name), DictionarySearchAnswer, **body)


def feature_vector(dictionary: str, name: str, feature: int, **description: Unpack[VectorDescription]) -> Call[Vector]:
    """Stores a feature of a dictionary as the next version of a vector."""
    body = {"name": name, "feature": feature, **description}
    return call("POST", path_of("/v1/dictionaries/{}/vectors", dictionary), Vector, **body)
