"""Calls for generation, comparison, replay and tokenization."""

import json
from collections.abc import Sequence
from typing import TypedDict, Unpack

from steering.client.calls.base import Call, Chat, Intervention, JsonObject, Steering, StreamCall, call, json_fields
from steering.client.results import Comparison
from steering.schemas.comparison import ArmErrorAnswer, ArmFields
from steering.schemas.generation import FlagCondition, GenerateAnswer, TokenPiece
from steering.schemas.resources import JobAnswer
from steering.schemas.steering import Record
from steering.schemas.system import DetokenizeAnswer, TokenizeAnswer


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


def generate(
    prompt: str | Sequence[int] | None = None, *, messages: Chat | None = None, **options: Unpack[GenerateOptions]
) -> Call[GenerateAnswer]:
    """Generates from one prompt: a text, token ids, or `messages`."""
    return call("POST", "/v1/generate", GenerateAnswer, prompt=prompt, messages=messages, **options)


def generate_stream(
    prompt: str | Sequence[int] | None = None, *, messages: Chat | None = None, **options: Unpack[GenerateOptions]
) -> StreamCall[TokenPiece | GenerateAnswer]:
    """Streams a generation: a TokenPiece per token, then the complete response."""
    body = json_fields(prompt=prompt, messages=messages, stream=True, **options)
    return StreamCall("POST", "/v1/generate", {"token": TokenPiece, "done": GenerateAnswer}, body)


def compare(
    prompt: str | Sequence[int] | None = None, *, messages: Chat | None = None, **options: Unpack[CompareOptions]
) -> Call[Comparison]:
    """Generates from one prompt with several arms, one seed and one batch, and measures what steering changed."""
    return call("POST", "/v1/compare", Comparison, prompt=prompt, messages=messages, **options)


def replay(record: Record | JsonObject, *, directions: Sequence[JsonObject] = ()) -> Call[GenerateAnswer]:
    """Generates the same tokens again from the `steering.record` of an earlier response. directions: those it was given inline,
    as they stood in place of a name."""
    body = record.model_dump(mode="json") if isinstance(record, Record) else dict(record)
    if directions:
        body["directions"] = [dict(one) for one in directions]
    return Call("POST", "/v1/replay", GenerateAnswer.model_validate_json, body)


def start_batch(content: bytes | Sequence[JsonObject]) -> Call[JobAnswer]:
    """Starts answering many prompts: JSON lines, or a list of bodies of `generate` with an `id` if wanted. Follow the job with
    `job_events` and read the results with `job_output`."""
    if not isinstance(content, bytes):
        content = b"".join(json.dumps(json_fields(**one)).encode() + b"\n" for one in content)
    read = JobAnswer.model_validate_json
    return Call("POST", "/v1/generate/batch", read, content=content, content_type="application/jsonl")


def compare_stream(
    prompt: str | Sequence[int] | None = None, *, messages: Chat | None = None, **options: Unpack[CompareOptions]
) -> StreamCall[TokenPiece | ArmErrorAnswer | Comparison]:
    """Streams a comparison. A TokenPiece names its arm, an ArmErrorAnswer ends one arm, the complete response is last."""
    body = json_fields(prompt=prompt, messages=messages, stream=True, **options)
    return StreamCall("POST", "/v1/compare", {"token": TokenPiece, "error": ArmErrorAnswer, "done": Comparison}, body)


def tokenize(
    prompt: str | Sequence[int] | None = None, *, messages: Chat | None = None, texts: bool = False
) -> Call[TokenizeAnswer]:
    """Returns the token ids of a prompt; `texts` adds the text of each token."""
    return call("POST", "/tokenize", TokenizeAnswer, prompt=prompt, messages=messages, texts=texts)


def detokenize(tokens: Sequence[int]) -> Call[DetokenizeAnswer]:
    """Returns the text of token ids."""
    return call("POST", "/detokenize", DetokenizeAnswer, tokens=tokens)
