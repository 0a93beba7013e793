"""Calls that read texts with the model: activations, scores, concepts that stand out, clusters."""

from collections.abc import Sequence
from typing import Literal, TypedDict, Unpack

from steering.client.calls.base import Call, Chat, Steering, Text, json_fields, parsed, raw_body
from steering.schemas.latent_space import ClustersAnswer
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
    return Call("POST", "/v1/activations", raw_body, body, accept="application/octet-stream")


def activations_json(
    texts: Sequence[Text] | None = None, **options: Unpack[ActivationOptions]
) -> Call[ActivationsAnswer]:
    """Returns the residual stream of a few texts as lists of numbers."""
    body = json_fields(texts=texts, **options)
    return Call("POST", "/v1/activations", parsed(ActivationsAnswer), body, accept="application/json")


def score(
    prompt: str | Sequence[int] | None = None,
    continuations: Sequence[str] | None = None,
    *,
    messages: Chat | None = None,
    texts: Sequence[str] | None = None,
    steering: Steering | None = None,
) -> Call[ScoreAnswer]:
    """Returns log-probabilities of continuations of a prompt or conversation, or of whole texts."""
    body = json_fields(prompt=prompt, messages=messages, continuations=continuations, texts=texts, steering=steering)
    return Call("POST", "/v1/score", parsed(ScoreAnswer), body)


def explain(
    texts: Sequence[Text] | None = None,
    *,
    messages: Chat | None = None,
    layers: Sequence[int] | None = None,
    threshold: float | None = None,
    top: int | None = None,
) -> Call[ExplainAnswer]:
    """Returns the concepts of the library that stand out in texts, or in one conversation, against neutral text."""
    body = json_fields(texts=texts, messages=messages, layers=layers, threshold=threshold, top=top)
    return Call("POST", "/v1/explain", parsed(ExplainAnswer), body)


def clusters(texts: Sequence[Text], **options: Unpack[ClusterOptions]) -> Call[ClustersAnswer]:
    """Groups texts without labels by their activations at one layer."""
    return Call("POST", "/v1/clusters", parsed(ClustersAnswer), json_fields(texts=texts, **options))
