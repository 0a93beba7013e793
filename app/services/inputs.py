"""What a caller wrote, turned into what the library takes: prompts, sampling, pairs, arms. Limits are checked here."""

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from app.settings import Settings
from app.state import AppState
from steering.concepts.loader import load_concept
from steering.engine.api import Engine, Prompt, SamplingParams
from steering.engine.prompts import check_context, encode_prompt
from steering.errors import InvalidRequest, LimitExceeded
from steering.pairs import ChatMessage, ContrastivePair, PairSet
from steering.pairs import Text as PairText
from steering.schemas.extraction import ExtractRequest, Text
from steering.schemas.generation import Message, PromptFields, SamplingFields
from steering.workflows.extraction.extract import ExtractionRequest
from steering.workflows.extraction.texts import default_position

_SEEDS = 2**53
"""Seeds of our choosing stay below this, so that a JavaScript client reads them back exactly."""
DEFAULT_MAX_TOKENS = 128


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """A prompt as the model reads it, and the tokens that the answer may have."""

    token_ids: tuple[int, ...]
    max_tokens: int


def check_limit(given: int, limit: int, what: str, param: str) -> None:
    """Raises LimitExceeded when more was given than the operator allows."""
    if given > limit:
        raise LimitExceeded(f"{given} {what} given; at most {limit}", param=param)


def chat_messages(messages: Sequence[Message]) -> tuple[ChatMessage, ...]:
    """Messages in the library's words."""
    return tuple(ChatMessage(message.role, message.content) for message in messages)


def prompt_of(fields: PromptFields, settings: Settings) -> Prompt:
    """The one prompt of a request."""
    if fields.messages is None:
        assert fields.prompt is not None
        return fields.prompt
    check_limit(len(fields.messages), settings.max_messages, "messages", "messages")
    return chat_messages(fields.messages)


def with_system(prompt: Prompt, system: str | None) -> Prompt:
    """The conversation under a system message of its own. Raises InvalidRequest for a prompt that is none."""
    if system is None:
        return prompt
    messages = [part for part in prompt if isinstance(part, ChatMessage)]
    if len(messages) != len(prompt):
        raise InvalidRequest("'system' needs 'messages'; a plain prompt has no place for it", param="arms")
    return (ChatMessage("system", system), *(one for one in messages if one.role != "system"))


async def tokenized(engine: Engine, prompt: Prompt, max_tokens: int | None) -> TokenizedPrompt:
    """The prompt's ids, checked against the context. Without max_tokens the answer gets what still fits, up to a default.

    Raises ContextLengthExceeded.
    """
    ids = await encode_prompt(engine.tokenizer, prompt)
    left = engine.info.context_length - len(ids)
    wanted = max_tokens if max_tokens is not None else max(1, min(DEFAULT_MAX_TOKENS, left))
    check_context(len(ids), wanted, engine.info)
    return TokenizedPrompt(ids, wanted)


def sampling_of(fields: SamplingFields, settings: Settings, max_tokens: int) -> SamplingParams:
    """Sampling in the library's words; a seed is chosen where none was given."""
    stops = (fields.stop,) if isinstance(fields.stop, str) else fields.stop
    check_limit(fields.n, settings.max_n, "answers", "n")
    check_limit(len(stops), settings.max_stops, "stop strings", "stop")
    check_limit(max(map(len, stops), default=0), settings.max_stop_characters, "characters in a stop string", "stop")
    logprobs = None if fields.logprobs is None or fields.logprobs is False else int(fields.logprobs)
    if fields.logprobs is True:
        logprobs = 0
    check_limit(logprobs or 0, settings.max_top_logprobs, "logprobs", "logprobs")
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=fields.temperature,
        top_p=fields.top_p,
        top_k=fields.top_k,
        min_p=fields.min_p,
        repetition_penalty=fields.repetition_penalty,
        seed=fields.seed if fields.seed is not None else secrets.randbelow(_SEEDS),
        stop=stops,
        logprobs=logprobs,
    )


def shows_tokens(body: SamplingFields) -> bool:
    """Whether the answer lists its tokens."""
    return bool(body.readout) or (body.logprobs is not None and body.logprobs is not False)


def pair_text(text: Text) -> PairText:
    """A text of a pair in the library's words."""
    return text if isinstance(text, str) else chat_messages(text)


async def pairs_of(state: AppState, body: ExtractRequest) -> PairSet:
    """The texts of an extraction; `describe` has none yet. Raises LimitExceeded, ConceptNotFound."""
    limit = state.settings.max_pairs
    if body.concept is not None:
        return await asyncio.to_thread(load_concept, body.concept)
    if body.pairs is not None:
        check_limit(len(body.pairs), limit, "pairs", "pairs")
        return PairSet.of([ContrastivePair(pair_text(p.positive), pair_text(p.negative), p.topic) for p in body.pairs])
    if body.positive is None or body.negative is None:
        raise InvalidRequest("no texts given", param="pairs")
    check_limit(len(body.positive), limit, "texts", "positive")
    check_limit(len(body.negative), limit, "texts", "negative")
    return PairSet(
        positive=tuple(map(pair_text, body.positive)), negative=tuple(map(pair_text, body.negative)), paired=False
    )


def extraction_of(body: ExtractRequest, pairs: PairSet, state: AppState) -> ExtractionRequest:
    """What the workflow takes. Raises LimitExceeded when the activations would not fit the operator's bound."""
    info = state.engine.info
    layers = info.layer_count if body.layers == "all" else len(body.layers)
    numbers = (len(pairs.positive) + len(pairs.negative)) * layers * info.d_model
    check_limit(numbers, state.settings.max_activations, "activations (texts x layers x d_model)", "layers")
    return ExtractionRequest(
        name=body.name,
        pairs=pairs,
        method=body.method,
        layers=body.layers,
        position=default_position(pairs) if body.position is None else body.position,
        holdout=body.holdout,
        seed=body.seed,
        description=body.description,
        tags=body.tags,
    )
