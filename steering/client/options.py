"""Types of the arguments of the client's methods."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypedDict

from steering.schemas.comparison import ArmFields
from steering.schemas.extraction import EffectRequest, Pair, Training, TraitDescription
from steering.schemas.generation import FlagCondition
from steering.schemas.messages import Message
from steering.spec import InterventionSpec

JsonObject: TypeAlias = Mapping[str, Any]
Intervention: TypeAlias = InterventionSpec | JsonObject
Steering: TypeAlias = Sequence[Intervention] | JsonObject
"""A list of interventions, or {"profile": name, "interventions": [...]}."""
Chat: TypeAlias = Sequence[Message | JsonObject]
Text: TypeAlias = str | Chat
Prompt: TypeAlias = str | Sequence[int] | None
"""A text, or token ids."""
Layers: TypeAlias = str | Sequence[int] | JsonObject
"""`recommended`, `all`, a list, or {"from": 10, "to": 16}."""


class SamplingOptions(TypedDict, total=False):
    """Options of `generate` and `compare`; see SamplingFields in steering/schemas/generation.py."""

    steering: Steering
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    seed: int
    stop: str | Sequence[str]
    n: int
    logprobs: bool | int
    readout: Sequence[str]


class GenerateOptions(SamplingOptions, total=False):
    """Sampling options, and flags: conditions on readouts, {"vector", "above" or "below"}."""

    flag: Sequence[FlagCondition | JsonObject]


class CompareOptions(SamplingOptions, total=False):
    """Sampling options, and the arms in one of three forms: `arms`, `steering`, or `strengths` of an `intervention`."""

    arms: Sequence[ArmFields | JsonObject]
    strengths: Sequence[float]
    intervention: Intervention
    baseline: str


class VectorDescription(TypedDict, total=False):
    """Description and tags of a vector."""

    description: str
    tags: Sequence[str]


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
