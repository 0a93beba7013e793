"""Request and response models of POST /v1/activations."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from steering.schemas.base import Answer, Measured, Request
from steering.schemas.messages import MAX_TEXTS, Messages, Texts, TokenIds
from steering.schemas.reading.logit_lens import LensSteering
from steering.schemas.steering import Steering
from steering.schemas.vectors import LayerList

ActivationPosition: TypeAlias = (
    Literal["last", "mean", "response_mean", "all"] | Annotated[int, Field(strict=True, ge=-100_000, le=-1)]
)
TokenIdLists: TypeAlias = Annotated[tuple[TokenIds, ...], Field(min_length=1, max_length=MAX_TEXTS, fail_fast=True)]


class ActivationsRequest(Request):
    """Exactly one of `texts` (each a plain text or a conversation), `messages` (one conversation) and `token_ids` (a list of
    token ids per text). position: one token of each text, a mean over its tokens, or `all` of them. dtype: of the numbers
    in the file; they are computed in the model's dtype and read in float32."""

    texts: Texts | None = None
    messages: Messages | None = None
    token_ids: TokenIdLists | None = None
    layers: Literal["all"] | LayerList = "all"
    position: ActivationPosition = "last"
    steering: Steering | None = None
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _one_source(self) -> "ActivationsRequest":
        if sum(given is not None for given in (self.texts, self.messages, self.token_ids)) != 1:
            raise ValueError("give exactly one of 'texts', 'messages' and 'token_ids'")
        return self


class ActivationsAnswer(Answer):
    """The JSON form. layers: layer -> a list of d_model numbers per text, or per token of all texts with position `all`;
    then text i has rows offsets[i] to offsets[i + 1], and token_ids has one id per row. steering: null without any."""

    model: str
    position: str | int
    layers: dict[str, list[list[Measured]]]
    offsets: list[int] | None = None
    token_ids: list[int] | None = None
    steering: LensSteering | None = None
