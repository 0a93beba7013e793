"""Calls for readouts, maps of activations, the logit lens, and evaluations of a vector."""

from collections.abc import Sequence
from typing import Literal, TypeAlias, TypedDict, Unpack

from steering.client.calls.base import WAIT, Call, Chat, JsonObject, Steering, Text, call
from steering.client.results import DoseResponse, LatentMap, LayerSweep, Readout, Report
from steering.schemas.reading import LogitLensAnswer
from steering.schemas.resources import JobAnswer

Layers: TypeAlias = str | Sequence[int] | JsonObject
"""`recommended`, `all`, a list, or {"from": 10, "to": 16}."""


class MapOptions(TypedDict, total=False):
    """Options of a map; see LatentSpaceRequest in steering/schemas/reading/latent_space.py."""

    labels: Sequence[str]
    layers: Literal["all"] | Sequence[int]
    method: str
    dims: int
    position: str | int
    vectors: Sequence[str]
    path: int
    embeddings: bool
    seed: int


class EvaluationOptions(TypedDict, total=False):
    """Options of every evaluation; see EvaluationFields in steering/schemas/evaluation."""

    prompts: Sequence[Text]
    concept: str
    reader: str
    reading_layer: int
    scorer: str
    max_tokens: int
    temperature: float


class SweepOptions(EvaluationOptions, total=False):
    """Options of an evaluation by strength or layer."""

    strengths: Sequence[float]
    layers: Layers
    seed: int


class DoseOptions(SweepOptions, total=False):
    """Options of a dose-response evaluation."""

    neutral: Sequence[Text]
    random_directions: int
    judge: JsonObject
    save: bool


class ReportOptions(EvaluationOptions, total=False):
    """Options of a deployment report; see ReportRequest in steering/schemas/evaluation/report.py."""

    steering: Steering
    strength: float
    direction: Literal["up", "down"]
    neutral: Sequence[Text]
    seeds: Sequence[int]
    samples: int
    varied: int
    side_effects: Sequence[str]
    thresholds: JsonObject


def readout(
    texts: Sequence[Text] | None = None,
    *,
    vectors: Sequence[str],
    messages: Chat | None = None,
    layers: Layers | None = None,
) -> Call[Readout]:
    """Measures each vector at every token of texts, or of one conversation (`messages`)."""
    return call("POST", "/v1/readout", Readout, texts=texts, messages=messages, vectors=vectors, layers=layers)


def latent_space(texts: Sequence[Text], **options: Unpack[MapOptions]) -> Call[LatentMap]:
    """Projects the activations of texts to two or three dimensions: one point per text and layer."""
    return call("POST", "/v1/latent-space", LatentMap, texts=texts, **options)


def logit_lens(
    prompt: str | Sequence[int] | None = None,
    *,
    messages: Chat | None = None,
    steering: Steering | None = None,
    layers: Literal["all"] | Sequence[int] | None = None,
    top_k: int = 5,
) -> Call[LogitLensAnswer]:
    """Predicts the next token from every layer, at every token of a prompt, unsteered and steered."""
    body = {"prompt": prompt, "messages": messages, "steering": steering, "layers": layers, "top_k": top_k}
    return call("POST", "/v1/logit-lens", LogitLensAnswer, **body)


def layer_sweep(vector: str, **options: Unpack[SweepOptions]) -> Call[LayerSweep]:
    """Finds the layer at which a vector changes text most before it breaks. Waits for the result."""
    return call("POST", "/v1/evaluations", LayerSweep, WAIT, kind="layer_sweep", vector=vector, **options)


def dose_response(vector: str, **options: Unpack[DoseOptions]) -> Call[DoseResponse]:
    """Measures effect and damage by strength. Waits for the result; `save` stores it on the vector's card."""
    return call("POST", "/v1/evaluations", DoseResponse, WAIT, kind="dose_response", vector=vector, **options)


def report(vector: str, **options: Unpack[ReportOptions]) -> Call[Report]:
    """Judges steering at a fixed operating point by three gates. Waits for the result, which takes minutes."""
    return call("POST", "/v1/evaluations", Report, WAIT, kind="report", vector=vector, **options)


def start_report(vector: str, **options: Unpack[ReportOptions]) -> Call[JobAnswer]:
    """Starts a deployment report as a job; follow it with `job_events`."""
    return call("POST", "/v1/evaluations", JobAnswer, kind="report", vector=vector, **options)


def start_evaluation(
    kind: Literal["layer_sweep", "dose_response"], vector: str, **options: Unpack[DoseOptions]
) -> Call[JobAnswer]:
    """Starts an evaluation as a job; follow it with `job_events`."""
    return call("POST", "/v1/evaluations", JobAnswer, kind=kind, vector=vector, **options)
