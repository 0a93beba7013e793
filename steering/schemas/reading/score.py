"""Request and response models of POST /v1/score."""

from typing import Annotated

from pydantic import Field, model_validator

from steering.schemas.base import Answer, Measured, Request
from steering.schemas.messages import MAX_TEXTS, Messages, PlainText, TokenIds
from steering.schemas.reading.logit_lens import LensSteering
from steering.schemas.steering import Steering

PlainTexts = Annotated[tuple[PlainText, ...], Field(min_length=1, max_length=MAX_TEXTS, fail_fast=True)]


class ScoreRequest(Request):
    """`continuations` of one `prompt` (a text or token ids) or conversation (`messages`), or whole `texts`."""

    prompt: PlainText | TokenIds | None = None
    messages: Messages | None = None
    continuations: PlainTexts | None = None
    texts: PlainTexts | None = None
    steering: Steering | None = None

    @model_validator(mode="after")
    def _one_form(self) -> "ScoreRequest":
        prompts = sum(given is not None for given in (self.prompt, self.messages))
        if self.texts is not None:
            if prompts or self.continuations is not None:
                raise ValueError("'texts' are scored by themselves: give no 'prompt', 'messages' or 'continuations'")
        elif prompts != 1 or self.continuations is None:
            raise ValueError("give 'texts', or 'continuations' with exactly one of 'prompt' and 'messages'")
        return self


class ScoredText(Answer):
    """One continuation or text. logprobs and greedy: per token, its log-probability given the tokens before it and whether it is the
    most probable one; null for the first token of a text, which nothing comes before. sum: of the logprobs. all_greedy: whether
    greedy decoding gives exactly these tokens."""

    token_ids: list[int]
    tokens: list[str]
    text: str
    logprobs: list[Measured | None]
    sum: Measured
    greedy: list[bool | None]
    all_greedy: bool


class ScoreAnswer(Answer):
    """Scores in the order given. prompt_tokens: of the prompt, 0 for texts. steering: null without any."""

    model: str
    prompt_tokens: int
    scores: list[ScoredText]
    steering: LensSteering | None
