"""Prompts, texts and sampling of requests: checks them against the operator's limits, tokenizes them, and converts them to the library's types."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from app.core.admission import check_limit
from app.core.settings import Settings
from steering.concepts.loader import load_concept
from steering.engine.api import Engine, Prompt, SamplingParams
from steering.engine.prompts import check_context, encode_steered
from steering.errors import InvalidRequest
from steering.pairs import ChatMessage, ContrastivePair, PairSet
from steering.pairs import Text as PairText
from steering.plan.types import UNSTEERED, SteeringPlan
from steering.schemas.extraction import Pair
from steering.schemas.messages import ChoiceFields, Message, PromptFields, SamplingFields, Text, TextsFields
from steering.threads import run_in_thread

_SEED_LIMIT = 2**53
"""Seeds chosen here stay below this, so that a JavaScript client reads them exactly."""
DEFAULT_MAX_TOKENS = 128


def check_sampling(settings: Settings, fields: SamplingFields, n: int) -> None:
    """Raises LimitExceeded for more answers, stop strings or biases than the operator allows."""
    stops = fields.stops
    check_limit(n, settings.max_n, "answers", "n")
    check_limit(len(stops), settings.max_stops, "stop strings", "stop")
    check_limit(max(map(len, stops), default=0), settings.max_stop_characters, "characters in a stop string", "stop")
    if isinstance(fields, ChoiceFields):
        check_limit(fields.top_logprobs or 0, settings.max_top_logprobs, "logprobs", "logprobs")


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """The token ids of a prompt, how many tokens the answer may have, and the plan with the roles of the prompt's tokens."""

    token_ids: tuple[int, ...]
    max_tokens: int
    plan: SteeringPlan


def chat_messages(messages: Sequence[Message]) -> tuple[ChatMessage, ...]:
    """Converts the messages of a request to the library's type."""
    return tuple(ChatMessage(message.role, message.content) for message in messages)


def pair_text(text: Text) -> PairText:
    """Converts a text of a request, plain or a conversation, to the library's type."""
    return text if isinstance(text, str) else chat_messages(text)


def pair_set(concept: str | None, pairs: Sequence[Pair] | None) -> PairSet:
    """Returns the pairs of a starter concept, or those that a caller gave. Raises ConceptNotFound."""
    if concept is not None:
        return load_concept(concept)
    if pairs is None:
        raise InvalidRequest("no texts given", param="pairs")
    return PairSet.of([ContrastivePair(pair_text(p.positive), pair_text(p.negative), p.topic) for p in pairs])


def prompt_of(fields: PromptFields, settings: Settings) -> Prompt:
    """Returns the prompt of a request."""
    if fields.messages is None:
        assert fields.prompt is not None
        return fields.prompt if isinstance(fields.prompt, str) else tuple(fields.prompt)
    check_limit(len(fields.messages), settings.max_messages, "messages", "messages")
    return chat_messages(fields.messages)


def with_system(prompt: Prompt, system: str | None) -> Prompt:
    """Returns the conversation with another system message. Raises InvalidRequest for a prompt that is not one."""
    if system is None:
        return prompt
    messages = [part for part in prompt if isinstance(part, ChatMessage)]
    if len(messages) != len(prompt):
        raise InvalidRequest("'system' needs 'messages'; a plain prompt has no system message", param="arms")
    return (ChatMessage("system", system), *(one for one in messages if one.role != "system"))


async def tokenize(
    engine: Engine,
    prompt: Prompt,
    max_tokens: int | None,
    plan: SteeringPlan = UNSTEERED,
    default: int = DEFAULT_MAX_TOKENS,
) -> TokenizedPrompt:
    """Tokenizes a prompt that is answered. Without max_tokens the answer gets what fits the context, up to `default`.

    Raises ContextLengthExceeded, InvalidRequest where the plan asks for roles that the prompt does not have.
    """
    ids, plan = await encode_steered(engine.tokenizer, prompt, plan)
    available = engine.info.context_length - len(ids)
    requested = max_tokens if max_tokens is not None else max(1, min(default, available))
    check_context(len(ids), requested, engine.info)
    return TokenizedPrompt(ids, requested, plan)


def check_texts(settings: Settings, fields: TextsFields) -> None:
    """Raises LimitExceeded for more texts or messages than the operator allows."""
    check_limit(len(fields.all_texts), settings.max_texts, "texts", "texts")
    check_limit(len(fields.messages or ()), settings.max_messages, "messages", "messages")


async def encode_texts(engine: Engine, fields: TextsFields) -> list[tuple[int, ...]]:
    """Tokenizes every text in a thread. Raises ContextLengthExceeded."""
    param = "texts" if fields.texts is not None else "messages"
    return await encode_prompts(engine, list(map(pair_text, fields.all_texts)), param)


async def encode_prompts(engine: Engine, prompts: Sequence[Prompt], param: str) -> list[tuple[int, ...]]:
    """Tokenizes texts, conversations and token ids in a thread. Raises ContextLengthExceeded, InvalidRequest naming `param`."""
    try:
        found = await run_in_thread(lambda: [engine.tokenizer.encode(prompt) for prompt in prompts])
    except InvalidRequest as error:
        raise type(error)(error.message, param=param) from None
    for ids in found:
        check_context(len(ids), 0, engine.info, param=param)
    return found


def check_activations(engine: Engine, settings: Settings, texts: int, layers: int, what: str, param: str) -> None:
    """Raises LimitExceeded when more numbers would be read from the model than the operator allows."""
    check_limit(texts * layers * engine.info.d_model, settings.max_activations, what, param)


def sampling_params(fields: SamplingFields, max_tokens: int, logprobs: int | None = None) -> SamplingParams:
    """Converts the sampling fields of a request; chooses a seed where none was given."""
    given = {name: getattr(fields, name) for name in SamplingFields.model_fields}
    changed = {
        "max_tokens": max_tokens,
        "logit_bias": {int(token): bias for token, bias in fields.logit_bias.items()},
        "seed": fields.seed if fields.seed is not None else secrets.randbelow(_SEED_LIMIT),
        "stop": fields.stops,
        "logprobs": fields.top_logprobs if isinstance(fields, ChoiceFields) else logprobs,
    }
    return SamplingParams(**given | changed)
