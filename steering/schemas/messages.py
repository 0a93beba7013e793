"""Texts, conversations and prompts in requests; `response_format` and sampling fields, which generation requests and replay records share."""

import json
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from steering.schemas.base import Flag, Request, Whole
from steering.schemas.structured import MAX_GRAMMAR, Grammar, Schema, with_bounded_schemas
from steering.spec import Number, PhaseName, at_most, exactly_one

MAX_CHARACTERS = 16_000_000
"""Characters of one text: far more than any context holds, so that the length is refused in tokens, not here."""
MAX_MESSAGES = 16_384
MAX_TEXTS = 100_000
MAX_TOKEN_IDS = 4_000_000

Content = Annotated[str, Field(max_length=MAX_CHARACTERS)]
TokenId = Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)]
TokenIds = Annotated[tuple[TokenId, ...], Field(min_length=1, max_length=MAX_TOKEN_IDS, fail_fast=True)]


class Message(Request):
    """One message of a conversation, rendered by the model's own chat template."""

    role: Literal["system", "user", "assistant"]
    content: Content


Messages = Annotated[tuple[Message, ...], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
PlainText = Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)]
Text: TypeAlias = PlainText | Messages
"""A plain text, or a conversation."""


def _refuse_max(position: Any) -> Any:
    if position == "max":
        raise ValueError(
            "'max' is the largest score over the tokens of a text, not an activation: it is a position of POST /v1/explain, "
            "of 'card_position' in POST /v1/vectors/extract and of `steer test`"
        )
    return position


Offset: TypeAlias = Annotated[int, Field(strict=True, ge=-100_000, le=-1)]
"""A token, counted from the end of a text."""


class SpanPosition(Request):
    """A phrase, where a text as the model reads it contains it last. read: the mean over its tokens, or, at each layer, the later token
    that attends to it most."""

    span: Annotated[str, Field(min_length=1, max_length=1000)]
    read: Literal["mean", "attending"] = "mean"


def position_as_json(position: str | int | SpanPosition) -> str | int | dict[str, str]:
    """Returns a position as it is kept: a span without its defaults."""
    return position.model_dump(exclude_defaults=True) if isinstance(position, SpanPosition) else position


ACTIVATION = BeforeValidator(_refuse_max)
"""Refuses the position `max` by name where an activation is read: a maximum of scores is none."""
Position: TypeAlias = Annotated[Literal["last", "mean", "response_mean"] | Offset | SpanPosition, ACTIVATION]
"""Which activation of a text is read: that of one token, or a mean over its tokens or those of a phrase."""
ScorePosition: TypeAlias = Literal["mean", "max"]
"""How the scores of the tokens of a text, without the first, become one."""
Phases: TypeAlias = Annotated[tuple[PhaseName, ...], Field(min_length=1, max_length=5, fail_fast=True)]
Texts: TypeAlias = Annotated[tuple[Text, ...], Field(min_length=1, max_length=MAX_TEXTS, fail_fast=True)]


class ConversationFields(Request):
    """A text that is continued, token ids, or a conversation.
    continue_final_message: the answer continues the last message, which is the assistant's, in place of a new one."""

    prompt: PlainText | TokenIds | None = None
    messages: Messages | None = None
    continue_final_message: Flag = False

    @model_validator(mode="after")
    def _continues_messages(self) -> Self:
        if self.continue_final_message and self.messages is None:
            raise ValueError("'continue_final_message' needs 'messages'")
        return self


class PromptFields(ConversationFields):
    """Exactly one of `prompt` (a text that is continued, or token ids) and `messages`."""

    _one_prompt = exactly_one("prompt", "messages")


class TextsFields(Request):
    """Exactly one of `texts` (each a plain text or a conversation) and `messages` (one conversation)."""

    texts: Texts | None = None
    messages: Messages | None = None

    _one_source = exactly_one("texts", "messages")

    @property
    def all_texts(self) -> tuple[Text, ...]:
        """Returns the texts; a conversation is one."""
        return self.texts if self.texts is not None else (self.messages or (),)


class JsonSchema(Request):
    """A named schema. It is always enforced, whatever `strict` says. name and description do not change an answer."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: Annotated[str, Field(max_length=4096)] | None = None
    schema_: Schema = Field(alias="schema")
    strict: Flag | None = None


class TextFormat(Request):
    """Any text, as without `response_format`."""

    type: Literal["text"]


class JsonObjectFormat(Request):
    """A JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(Request):
    """JSON that matches a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat: TypeAlias = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]  # fmt: skip


class StructuredFields(Request):
    """At most one of `response_format`, `guided_regex` (the whole answer matches it) and `guided_grammar` (in Lark's notation)."""

    response_format: ResponseFormat | None = None
    guided_regex: Annotated[str, Field(min_length=1, max_length=4_096)] | None = None
    guided_grammar: (
        Annotated[str, Field(min_length=1, max_length=MAX_GRAMMAR), AfterValidator(with_bounded_schemas)] | None
    ) = None

    @model_validator(mode="after")
    def _one_grammar(self) -> "StructuredFields":
        if sum(one is not None for one in (self._schema, self.guided_regex, self.guided_grammar)) > 1:
            raise ValueError("give at most one of 'response_format', 'guided_regex' and 'guided_grammar'")
        return self

    @property
    def _schema(self) -> dict[str, Any] | None:
        if isinstance(self.response_format, JsonSchemaFormat):
            return self.response_format.json_schema.schema_
        return {"type": "object"} if isinstance(self.response_format, JsonObjectFormat) else None

    @property
    def grammar(self) -> Grammar | None:
        """What an answer must match; None for any text."""
        if self._schema is not None:
            return Grammar("json_schema", json.dumps(self._schema))
        if self.guided_regex is not None:
            return Grammar("regex", self.guided_regex)
        return None if self.guided_grammar is None else Grammar("lark", self.guided_grammar)


MAX_SEED = 2**63 - 1
MAX_STOPS = 64
Seed = Annotated[int, Field(strict=True, ge=0, le=MAX_SEED)]
Stop = Annotated[str, Field(min_length=1, max_length=1024)]
Stops = Annotated[tuple[Stop, ...], Field(max_length=MAX_STOPS, fail_fast=True)]
MaxTokens = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]
Penalty = Annotated[Number, Field(ge=-2, le=2)]
TokenKey = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,9})$")]
LogitBias = Annotated[dict[TokenKey, Annotated[Number, Field(ge=-100, le=100)]], Field(max_length=1024), at_most(1024)]


class SamplingFields(StructuredFields):
    """How the next token is chosen. temperature 0 is greedy. Without max_tokens 128, or what still fits the context.

    presence_penalty and frequency_penalty lower the logits of generated tokens; logit_bias adds to logits by token id.
    """

    max_tokens: MaxTokens | None = None
    temperature: Annotated[Number, Field(ge=0, le=100)] = 0.7
    top_p: Annotated[Number, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(strict=True, ge=0, le=1_000_000)] = 0
    min_p: Annotated[Number, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[Number, Field(gt=0, le=100)] = 1.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    logit_bias: LogitBias = Field(default_factory=dict)
    seed: Seed | None = None
    stop: Stop | Stops = ()

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else self.stop


class ChoiceFields(SamplingFields):
    """Sampling, how many answers, and what the response says of their tokens."""

    n: Annotated[int, Field(strict=True, ge=1, le=1024)] = 1
    logprobs: Flag | Annotated[Whole, Field(ge=0, le=1_000_000)] | None = Field(
        None, description="true or 0: the logprob of each token; k: also the k most probable tokens"
    )
    readout: Annotated[tuple[Annotated[str, Field(max_length=128)], ...], Field(max_length=64, fail_fast=True)] = Field(
        (), description="vectors to measure at every token"
    )
    stream: Flag = False

    @property
    def top_logprobs(self) -> int | None:
        """How many alternatives to list with each logprob; None: no logprobs."""
        if self.logprobs is None or self.logprobs is False:
            return None
        return 0 if self.logprobs is True else int(self.logprobs)

    @property
    def lists_tokens(self) -> bool:
        """Whether the response lists the tokens of each answer."""
        return bool(self.readout) or self.top_logprobs is not None
