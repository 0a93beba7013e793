"""Generate on the wire: prompts, sampling, answers, and the events of a stream."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from steering.schemas.base import Answer, Flag, Measured, Number, Request, Whole
from steering.schemas.flags import FlagCondition, RaisedFlag
from steering.schemas.steering import AppliedSteering, Steering

MAX_SEED = 2**63 - 1
TokenId = Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)]
Stop = Annotated[str, Field(min_length=1)]


class Message(Request):
    """One message of a conversation, rendered by the model's own chat template."""

    role: Literal["system", "user", "assistant"]
    content: str


class PromptFields(Request):
    """Exactly one of `prompt` (a text continued as it stands, or token ids) and `messages`."""

    prompt: Annotated[str, Field(min_length=1)] | Annotated[tuple[TokenId, ...], Field(min_length=1)] | None = None
    messages: Annotated[tuple[Message, ...], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one_prompt(self) -> "PromptFields":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give exactly one of 'prompt' and 'messages'")
        return self


class SamplingFields(Request):
    """How the next token is chosen. temperature 0 is greedy. Without max_tokens 128, or what still fits the context."""

    max_tokens: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=100)] = 0.7
    top_p: Annotated[Number, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(strict=True, ge=0, le=1_000_000)] = 0
    min_p: Annotated[Number, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[Number, Field(gt=0, le=100)] = 1.0
    seed: Annotated[int, Field(strict=True, ge=0, le=MAX_SEED)] | None = None
    stop: Stop | tuple[Stop, ...] = ()
    n: Annotated[int, Field(strict=True, ge=1)] = 1
    logprobs: Flag | Annotated[Whole, Field(ge=0)] | None = Field(
        None, description="true or 0: the logprob of each token; k: the k likeliest beside it"
    )
    readout: tuple[str, ...] = Field((), description="vectors to measure at every token")
    stream: Flag = False


class GenerateRequest(PromptFields, SamplingFields):
    """One prompt, n answers, one steering. flag: conditions on readouts; what they measure is shown as a readout is."""

    steering: Steering | None = None
    flag: tuple[FlagCondition, ...] = ()


class TopLogprob(Answer):
    """One of the likeliest tokens."""

    id: int
    text: str
    logprob: Measured


class Token(Answer):
    """One generated token. text: the characters that became certain with it; joined they are the answer's text."""

    id: int
    text: str
    logprob: Measured | None = None
    top_logprobs: list[TopLogprob] | None = None
    readout: dict[str, Measured] | None = None


class Choice(Answer):
    """One answer. tokens: present when logprobs or readout was asked. flags: those that were raised, when any was asked."""

    index: int
    text: str
    finish_reason: Literal["stop", "length"]
    tokens: list[Token] | None = None
    flags: list[RaisedFlag] | None = None


class Usage(Answer):
    """prompt_tokens counts the prompt once, however many answers were asked."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int


class GenerateAnswer(Answer):
    """The answers, the seed that makes them again, and what the steering really did. Also the data of `done`."""

    id: str
    model: str
    seed: int
    choices: list[Choice]
    usage: Usage
    steering: AppliedSteering


class TokenPiece(Answer):
    """Data of a `token` event: choice `choice` (of arm `arm` in a comparison) goes on with `text`. id is null for last
    characters that became certain only when the answer ended. flags: which of the request's flags are raised here."""

    arm: str | None = None
    choice: int
    index: int
    id: int | None = None
    text: str
    logprob: Measured | None = None
    top_logprobs: list[TopLogprob] | None = None
    readout: dict[str, Measured] | None = None
    flags: list[int] | None = None
