"""Calls that read: texts against vectors, maps of activations, the logit lens, and evaluations of a vector."""

from collections.abc import Sequence
from typing import Literal, TypeAlias, TypedDict, Unpack

from steering.client.calls.base import Call, Chat, Steering, Text, Words, given, model
from steering.schemas.analysis import LatentSpaceAnswer, LogitLensAnswer, ReadoutAnswer
from steering.schemas.evaluation import DoseResponseAnswer, LayerSweepAnswer
from steering.schemas.jobs import JobAnswer

Layers: TypeAlias = str | Sequence[int] | Words
"""`recommended`, `all`, a list, or {"from": 10, "to": 16}."""


class MapOptions(TypedDict, total=False):
    """How texts are drawn; see LatentSpaceRequest in steering/schemas/analysis.py."""

    labels: Sequence[str]
    layers: Literal["all"] | Sequence[int]
    method: str
    dims: int
    position: str | int
    vectors: Sequence[str]
    path: int
    embeddings: bool
    seed: int


class SweepOptions(TypedDict, total=False):
    """What every evaluation takes; see EvaluationFields in steering/schemas/evaluation.py."""

    prompts: Sequence[Text]
    concept: str
    strengths: Sequence[float]
    layers: Layers
    reader: str
    reading_layer: int
    scorer: str
    max_tokens: int
    temperature: float
    seed: int


class DoseOptions(SweepOptions, total=False):
    """The same, and what a dose-response alone takes."""

    neutral: Sequence[Text]
    random_directions: int
    judge: Words
    save: bool


def readout(
    texts: Sequence[Text] | None = None,
    *,
    vectors: Sequence[str],
    messages: Chat | None = None,
    layers: Layers | None = None,
) -> Call[ReadoutAnswer]:
    """How much of each concept is in each token of texts, or of one conversation (`messages`)."""
    body = given(texts=texts, messages=messages, vectors=vectors, layers=layers)
    return Call("POST", "/v1/readout", model(ReadoutAnswer), body)


def latent_space(texts: Sequence[Text], **options: Unpack[MapOptions]) -> Call[LatentSpaceAnswer]:
    """Where texts lie in the residual stream, a point a text and layer."""
    return Call("POST", "/v1/latent-space", model(LatentSpaceAnswer), given(texts=texts, **options))


def logit_lens(
    prompt: str | Sequence[int] | None = None,
    *,
    messages: Chat | None = None,
    steering: Steering | None = None,
    layers: Literal["all"] | Sequence[int] | None = None,
    top_k: int = 5,
) -> Call[LogitLensAnswer]:
    """What the model would say if it stopped at a layer, at every token of a prompt, plain and steered."""
    body = given(prompt=prompt, messages=messages, steering=steering, layers=layers, top_k=top_k)
    return Call("POST", "/v1/logit-lens", model(LogitLensAnswer), body)


def layer_sweep(vector: str, **options: Unpack[SweepOptions]) -> Call[LayerSweepAnswer]:
    """At which layer a vector moves text the furthest before it breaks; waits for it."""
    body = given(kind="layer_sweep", vector=vector, **options)
    return Call("POST", "/v1/evaluations", model(LayerSweepAnswer), body, query={"wait": True})


def dose_response(vector: str, **options: Unpack[DoseOptions]) -> Call[DoseResponseAnswer]:
    """How strongly a vector moves text, and at what cost; waits for it. `save` keeps it on the vector's card."""
    body = given(kind="dose_response", vector=vector, **options)
    return Call("POST", "/v1/evaluations", model(DoseResponseAnswer), body, query={"wait": True})


def start_evaluation(
    kind: Literal["layer_sweep", "dose_response"], vector: str, **options: Unpack[DoseOptions]
) -> Call[JobAnswer]:
    """Either of them as a job; follow it with `job_events`."""
    return Call("POST", "/v1/evaluations", model(JobAnswer), given(kind=kind, vector=vector, **options))
