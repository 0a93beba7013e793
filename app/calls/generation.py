"""Calls that generate: one prompt answered, compared, cut into tokens."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, Unpack

from app.calls.base import Call, Chat, Steering, StreamCall, given, model
from app.schemas.generation import GenerateAnswer, TokenPiece
from app.schemas.system import DetokenizeAnswer, TokenizeAnswer


class SamplingOptions(TypedDict, total=False):
    """What `generate` and `compare` both take; see SamplingFields in app/schemas/generation.py."""

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


def _prompted(prompt: str | Sequence[int] | None, messages: Chat | None, options: Mapping[str, Any]) -> dict[str, Any]:
    return given(prompt=prompt, messages=messages, **options)


def generate(
    prompt: str | Sequence[int] | None = None, *, messages: Chat | None = None, **options: Unpack[SamplingOptions]
) -> Call[GenerateAnswer]:
    """Answers to one prompt: a text, token ids, or `messages`."""
    return Call("POST", "/v1/generate", model(GenerateAnswer), _prompted(prompt, messages, options))


def generate_stream(
    prompt: str | Sequence[int] | None = None, *, messages: Chat | None = None, **options: Unpack[SamplingOptions]
) -> StreamCall[TokenPiece | GenerateAnswer]:
    """The same as it is written: a TokenPiece for every token, the whole answer last."""
    body = {**_prompted(prompt, messages, options), "stream": True}
    return StreamCall("POST", "/v1/generate", {"token": TokenPiece, "done": GenerateAnswer}, body)


def tokenize(
    prompt: str | Sequence[int] | None = None, *, messages: Chat | None = None, texts: bool = False
) -> Call[TokenizeAnswer]:
    """Token ids of a prompt, as the model would read them; `texts` adds each token's own text."""
    body = {**_prompted(prompt, messages, {}), "texts": texts}
    return Call("POST", "/tokenize", model(TokenizeAnswer), body)


def detokenize(tokens: Sequence[int]) -> Call[DetokenizeAnswer]:
    """The text of token ids."""
    return Call("POST", "/detokenize", model(DetokenizeAnswer), given(tokens=tokens))
