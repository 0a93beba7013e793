"""Calls that generate: one prompt answered, compared, cut into tokens."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, Unpack

from steering.client.calls.base import Call, Chat, Intervention, Steering, StreamCall, Words, given, model
from steering.schemas.comparison import ArmErrorAnswer, ArmFields, CompareAnswer
from steering.schemas.flags import FlagCondition
from steering.schemas.generation import GenerateAnswer, TokenPiece
from steering.schemas.replay import Record
from steering.schemas.system import DetokenizeAnswer, TokenizeAnswer


class SamplingOptions(TypedDict, total=False):
    """What `generate` and `compare` both take; see SamplingFields in steering/schemas/generation.py."""

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
    """The same, and flags: conditions on readouts, {"vector", "above" or "below"}."""

    flag: Sequence[FlagCondition | Words]


class CompareOptions(SamplingOptions, total=False):
    """The arms of a comparison in one of three forms: `arms`, `steering` alone, or `strengths` of an `intervention`."""

    arms: Sequence[ArmFields | Words]
    strengths: Sequence[float]
    intervention: Intervention
    baseline: str


def _prompted(prompt: str | Sequence[int] | None, messages: Chat | None, options: Mapping[str, Any]) -> dict[str, Any]:
    return given(prompt=prompt, messages=messages, **options)


def generate(
    prompt: str | Sequence[int] | None = None, *, messages: Chat | None = None, **options: Unpack[GenerateOptions]
) -> Call[GenerateAnswer]:
    """Answers to one prompt: a text, token ids, or `messages`."""
    return Call("POST", "/v1/generate", model(GenerateAnswer), _prompted(prompt, messages, options))


def generate_stream(
    prompt: str | Sequence[int] | None = None, *, messages: Chat | None = None, **options: Unpack[GenerateOptions]
) -> StreamCall[TokenPiece | GenerateAnswer]:
    """The same as it is written: a TokenPiece for every token, the whole answer last."""
    body = {**_prompted(prompt, messages, options), "stream": True}
    return StreamCall("POST", "/v1/generate", {"token": TokenPiece, "done": GenerateAnswer}, body)


def compare(
    prompt: str | Sequence[int] | None = None, *, messages: Chat | None = None, **options: Unpack[CompareOptions]
) -> Call[CompareAnswer]:
    """One prompt, several arms, one seed, one batch; what steering changed, token by token and in sum."""
    return Call("POST", "/v1/compare", model(CompareAnswer), _prompted(prompt, messages, options))


def replay(record: Record | Words) -> Call[GenerateAnswer]:
    """The same tokens again, from the `steering.record` of an earlier answer."""
    body = record.model_dump(mode="json") if isinstance(record, Record) else dict(record)
    return Call("POST", "/v1/replay", model(GenerateAnswer), body)


def compare_stream(
    prompt: str | Sequence[int] | None = None, *, messages: Chat | None = None, **options: Unpack[CompareOptions]
) -> StreamCall[TokenPiece | ArmErrorAnswer | CompareAnswer]:
    """The same as it is written: a TokenPiece names its arm, an ArmErrorAnswer ends its arm alone, the whole is last."""
    body = {**_prompted(prompt, messages, options), "stream": True}
    return StreamCall(
        "POST", "/v1/compare", {"token": TokenPiece, "error": ArmErrorAnswer, "done": CompareAnswer}, body
    )


def tokenize(
    prompt: str | Sequence[int] | None = None, *, messages: Chat | None = None, texts: bool = False
) -> Call[TokenizeAnswer]:
    """Token ids of a prompt, as the model would read them; `texts` adds each token's own text."""
    body = {**_prompted(prompt, messages, {}), "texts": texts}
    return Call("POST", "/tokenize", model(TokenizeAnswer), body)


def detokenize(tokens: Sequence[int]) -> Call[DetokenizeAnswer]:
    """The text of token ids."""
    return Call("POST", "/detokenize", model(DetokenizeAnswer), given(tokens=tokens))
