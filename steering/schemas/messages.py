"""Texts, conversations and prompts in requests."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from steering.schemas.base import Request, exactly_one

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
Position: TypeAlias = Literal["last", "mean", "response_mean"] | Annotated[int, Field(strict=True, ge=-100_000, le=-1)]
"""Which activation of a text is read: that of one token, or a mean over its tokens."""
Texts: TypeAlias = Annotated[tuple[Text, ...], Field(min_length=1, max_length=MAX_TEXTS, fail_fast=True)]


class PromptFields(Request):
    """Exactly one of `prompt` (a text that is continued, or token ids) and `messages`."""

    prompt: PlainText | TokenIds | None = None
    messages: Messages | None = None

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
