"""Request and response models of POST /v1/logit-lens."""

from typing import Annotated, Literal

from pydantic import Field

from steering.schemas.base import Answer, Measured
from steering.schemas.messages import PromptFields
from steering.schemas.reading.readout import ReadToken
from steering.schemas.steering import Steering
from steering.schemas.vectors import LayerList


class LogitLensRequest(PromptFields):
    """Predictions of the model from every layer, at every token of the prompt. steering: absent is the server's
    default; with `[]` there is only the plain reading."""

    steering: Steering | None = None
    layers: Literal["all"] | LayerList = "all"
    top_k: Annotated[int, Field(strict=True, ge=1, le=1000)] = 5


class PredictionAnswer(Answer):
    """One of the most probable next tokens."""

    id: int
    text: str
    logprob: Measured


class LensLayerAnswer(Answer):
    """One layer: at every token the most probable next tokens, best first. steered: null without steering."""

    layer: int
    plain: list[list[PredictionAnswer]]
    steered: list[list[PredictionAnswer]] | None


class LensSteering(Answer):
    """The steering of the steered reading. vectors: `name@version` -> SHA-256."""

    fingerprint: str
    vectors: dict[str, str]
    warnings: list[str]


class LogitLensAnswer(Answer):
    """Layers ascending; the last of all is the model itself."""

    model: str
    tokens: list[ReadToken]
    layers: list[LensLayerAnswer]
    steering: LensSteering | None
