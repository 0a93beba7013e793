"""Request and response models of POST /v1/generate, the events of its stream, and of POST /v1/generate/batch."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from steering.schemas.base import Answer, ErrorDetail, Request
from steering.schemas.messages import ChoiceFields, Phases, PromptFields
from steering.schemas.steering import AppliedSteering, BatchFields, Steering
from steering.spec import Measured, Number, PhaseName, exactly_one


class FlagCondition(Request):
    """Raised at every token whose readout of a vector, in natural scales, is beyond the one bound given. phase: only at tokens in these."""

    vector: Annotated[str, Field(max_length=128)]
    above: Number | None = None
    below: Number | None = None
    phase: Phases | None = None

    _one_bound = exactly_one("above", "below")


class RaisedFlag(Answer):
    """A condition that held, and the indices of the generated tokens at which it did.
    A monitor of the policy has its name, `at`, `action` (`flag` or `stop`) and its most extreme score."""

    monitor: str | None = None
    vector: str
    above: float | None = None
    below: float | None = None
    phase: list[PhaseName] | None = None
    at: str | None = None
    action: str | None = None
    score: Measured | None = None
    tokens: list[int]


class GenerateRequest(PromptFields, ChoiceFields):
    """One prompt, n answers, one steering. flag: conditions on readouts; their scores are reported like a readout."""

    steering: Steering | None = None
    flag: Annotated[tuple[FlagCondition, ...], Field(max_length=64, fail_fast=True)] = ()


class TopLogprob(Answer):
    """One of the most probable tokens."""

    id: int
    text: str
    logprob: Measured


class Token(Answer):
    """One generated token. text: the characters completed by it; joined they are the answer's text. phase: of the token, where answers
    of the model or the request can have others than `answer`."""

    id: int
    text: str
    logprob: Measured | None = None
    top_logprobs: list[TopLogprob] | None = None
    readout: dict[str, Measured] | None = None
    phase: PhaseName | None = None


class Choice(Answer):
    """One answer. tokens: if logprobs or readout was requested. finish_reason `monitor`: a monitor stopped it.
    flags: those raised; present when the request has flags or a monitor of the policy was raised."""

    index: int
    text: str
    finish_reason: Literal["stop", "length", "monitor"]
    tokens: list[Token] | None = None
    flags: list[RaisedFlag] | None = None


class Usage(Answer):
    """prompt_tokens counts the prompt once, however many answers were requested."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int


class GenerateAnswer(Answer):
    """The answers, the seed that repeats them, and the applied steering. Also the data of `done`."""

    id: str
    model: str
    seed: int
    choices: list[Choice]
    usage: Usage
    steering: AppliedSteering


class TokenPiece(Answer):
    """Data of a `token` event: choice `choice` (of arm `arm` in a comparison) continues with `text`.
    id: null for last characters that were completed only when the answer ended. flags: indices of the raised flags of the
    request. monitors: the names of the raised monitors of the policy."""

    arm: str | None = None
    choice: int
    index: int
    id: int | None = None
    text: str
    logprob: Measured | None = None
    top_logprobs: list[TopLogprob] | None = None
    readout: dict[str, Measured] | None = None
    phase: PhaseName | None = None
    flags: list[int] | None = None
    monitors: list[str] | None = None


class BatchLine(GenerateRequest, BatchFields):
    """A request of POST /v1/generate. record: whether the result has the record that repeats it, which holds the whole prompt."""

    record: bool = False

    @model_validator(mode="after")
    def _plain(self) -> "BatchLine":
        if self.stream:
            raise ValueError("a request of a batch has no stream")
        return self


class BatchResult(Answer):
    """One line of the output, in the order of the input. Either response or error is present."""

    index: int
    id: str | None = None
    response: GenerateAnswer | None = None
    error: ErrorDetail | None = None


JSON_LINES: dict[str, Any] = {"application/jsonl": {"schema": {"type": "string"}}}
"""OpenAPI's description of a body of JSON lines."""
