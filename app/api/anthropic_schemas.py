"""Request models of Anthropic's Messages API. Known fields that are not offered are refused by name."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from app.api.openai_schemas import Label, ModelName, RefusingRequest
from app.api.translated import TopK, continuing
from steering.errors import UnsupportedParameter
from steering.pairs import ChatMessage
from steering.schemas import messages as native
from steering.schemas.base import Flag, Request
from steering.schemas.steering import Steering
from steering.spec import Number


class CacheControl(Request):
    """Where a prefix ends that should be kept. Prefixes are kept without being asked, so it changes nothing."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextBlock(Request):
    """A block of text. citations: as clients send an earlier answer back, empty."""

    type: Literal["text"]
    text: native.Content
    cache_control: CacheControl | None = None
    citations: Annotated[tuple[None, ...], Field(max_length=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _only_text(cls, block: Any) -> Any:
        kind = block.get("type") if isinstance(block, dict) else None
        if isinstance(kind, str) and kind != "text":
            raise UnsupportedParameter(
                f"content blocks of type {kind[:40]!r} are not supported by this server, only 'text'", param="content"
            )
        return block


Blocks = Annotated[tuple[TextBlock, ...], Field(min_length=1, max_length=1024, fail_fast=True)]
Content = native.Content | Blocks


def text_of(content: Content) -> str:
    """Returns content as one text."""
    return content if isinstance(content, str) else "".join(block.text for block in content)


class InputMessage(Request):
    """A message of the conversation."""

    role: Literal["user", "assistant", "system"]
    content: Content


class MetaData(Request):
    """user_id: of the application; it changes nothing."""

    user_id: Label | None = None


class ConversationRequest(RefusingRequest):
    """Fields of both routes: what the model reads."""

    refused: ClassVar[dict[str, Any]] = {
        "tools": [],
        "tool_choice": {"type": "none"},
        "thinking": {"type": "disabled"},
        "mcp_servers": [],
        "output_config": {},
        "output_format": None,
        "context_management": None,
    }

    model: ModelName
    messages: Annotated[tuple[InputMessage, ...], Field(min_length=1, max_length=native.MAX_MESSAGES, fail_fast=True)]
    system: Content | None = None
    cache_control: CacheControl | None = None

    def conversation(self) -> tuple[ChatMessage, ...]:
        """Returns the messages, after the system prompt; see `continuing`."""
        system = "" if self.system is None else text_of(self.system)
        begun = (ChatMessage("system", system),) if system else ()
        return continuing((*begun, *(ChatMessage(one.role, text_of(one.content)) for one in self.messages)))


class CountTokensRequest(ConversationRequest):
    """POST /v1/messages/count_tokens."""


class MessagesRequest(ConversationRequest):
    """POST /v1/messages. seed and steering are ours, and temperature may be as high as in chat completions."""

    refused: ClassVar[dict[str, Any]] = {
        **ConversationRequest.refused,
        "container": None,
        "diagnostics": None,
        "inference_geo": None,
        "speed": "standard",
    }

    max_tokens: native.MaxTokens
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: TopK | None = None
    stop_sequences: native.Stops | None = None
    stream: Flag | None = None
    metadata: MetaData | None = None
    service_tier: Label | None = None
    seed: native.Seed | None = None
    steering: Steering | None = None
