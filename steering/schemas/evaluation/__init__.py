"""Request and response models of POST /v1/evaluations."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from steering.schemas.base import Answer, Flag, Measured, Number, Request, Whole, at_most_one
from steering.schemas.comparison import EstimateAnswer
from steering.schemas.evaluation.report import ReportAnswer, ReportRequest
from steering.schemas.messages import Seed, Texts
from steering.schemas.vectors import DosePointAnswer, Name, RecommendedAnswer, VectorAnswer
from steering.spec import Layers

Strengths: TypeAlias = Annotated[tuple[Number, ...], Field(min_length=1, max_length=1024, fail_fast=True)]


class EvaluationFields(Request):
    """What every evaluation takes. prompts (a text is continued as it stands, messages are answered), or `concept` for the
    evaluation prompts of a starter concept; without either, the package's neutral prompts. The answers are read back by
    the unsteered model along `reader` (absent: the vector itself) at reading_layer (absent: where its card reads best)."""

    vector: Name
    prompts: Texts | None = None
    concept: Annotated[str, Field(max_length=64)] | None = None
    strengths: Strengths | None = None
    reader: Name | None = None
    reading_layer: Annotated[Whole, Field(ge=0, le=1000)] | None = None
    scorer: Annotated[str, Field(max_length=64)] = "projection"
    max_tokens: Annotated[int, Field(strict=True, ge=1, le=512)] = 48
    temperature: Annotated[Number, Field(ge=0, le=100)] = 0.7
    seed: Seed = 0

    _one_source = at_most_one("prompts", "concept")


class LayerSweepRequest(EvaluationFields):
    """One layer at a time, at strengths of one sign: which moves text furthest before it breaks."""

    kind: Literal["layer_sweep"]
    layers: Layers = "all"


class JudgeRequest(Request):
    """A judge that also rates the answers. by: the loaded model (`self`), or the `endpoint` that the operator named. concept: in words;
    absent, the vector's description, or its name."""

    by: Literal["self", "endpoint"]
    concept: Annotated[str, Field(min_length=1, max_length=1000)] | None = None


class DoseResponseRequest(EvaluationFields):
    """Many strengths at the same layers, compared with random directions of the same dose. neutral: prompts on which damage is
    measured. judge: also rates the answers. save: store the result in the vector's card, as its next version."""

    kind: Literal["dose_response"]
    layers: Layers = "recommended"
    neutral: Texts | None = None
    random_directions: Annotated[Whole, Field(ge=0, le=32)] = 8
    judge: JudgeRequest | None = None
    save: Flag = False


StrengthsRequest: TypeAlias = LayerSweepRequest | DoseResponseRequest
"""Evaluations over many strengths."""

EvaluationRequest: TypeAlias = Annotated[StrengthsRequest | ReportRequest, Field(discriminator="kind")]


class LayerPointAnswer(Answer):
    """One layer at one strength. moved: shift of the score along the sign of the strength. advantage: the same less what one
    random direction in twenty reaches, over all layers of the sweep. auroc: the cross-validated one of the vector's card."""

    layer: int
    strength: Measured
    moved: EstimateAnswer
    advantage: EstimateAnswer
    perplexity_ratio: Measured
    repetition: Measured
    relative_dose: Measured
    auroc: Measured | None
    perplexity_interval: tuple[Measured, Measured] | None = None


class LayerSweepAnswer(Answer):
    """Points by layer, then strength. best: the point that moved furthest beyond chance, with its interval, while the text
    stayed coherent; null if none did. A dose-response at that layer gives the same answers, but estimates chance from random
    directions at that layer alone, so its recommended strengths can differ at the ends."""

    kind: Literal["layer_sweep"] = "layer_sweep"
    vector: str
    reading_layer: int
    points: list[LayerPointAnswer]
    best: LayerPointAnswer | None
    recommended: RecommendedAnswer | None
    warnings: list[str]


class EvaluatedPoint(DosePointAnswer):
    """One strength. advantage: how far the concept moved along the sign beyond what one random direction in twenty reaches
    at the same dose; null at 0."""

    advantage: EstimateAnswer | None = None


class JudgedPointAnswer(Answer):
    """One strength: means from 0 to 2 over the answers with all three ratings (`judged` of them; `failed` lack one), null where
    there is none. overall: harmonic mean of an answer's three."""

    strength: Measured
    concept: EstimateAnswer | None
    instruction: EstimateAnswer | None
    fluency: EstimateAnswer | None
    overall: EstimateAnswer | None
    judged: int
    failed: int


class JudgementAnswer(Answer):
    """The judge's ratings, by strength. failures: how many ratings failed: the judge was `unreachable`, or
    its reply `unreadable`."""

    by: Literal["self", "endpoint"]
    concept: str
    points: list[JudgedPointAnswer]
    ratings: int
    failures: dict[str, int]


class DoseResponseAnswer(Answer):
    """Points by strength; scores are shifts against the unsteered answers, whose own mean is baseline_score, in `unit`.
    recommended: strengths at which the concept moved beyond chance and the text stayed coherent, each with its 95 %
    interval; null above or below 0 where none did. anti_steered: share of prompts that move against the sign. judgement:
    ratings of the judge, if one was named. saved: the vector's new version, if requested and stored."""

    kind: Literal["dose_response"] = "dose_response"
    vector: str
    layers: list[int]
    reading_layer: int
    unit: str
    baseline_score: Measured
    points: list[EvaluatedPoint]
    anti_steered: Measured | None
    recommended: RecommendedAnswer
    warnings: list[str]
    judgement: JudgementAnswer | None = None
    saved: VectorAnswer | None = None


StrengthsAnswer: TypeAlias = LayerSweepAnswer | DoseResponseAnswer

EvaluationAnswer: TypeAlias = Annotated[StrengthsAnswer | ReportAnswer, Field(discriminator="kind")]
