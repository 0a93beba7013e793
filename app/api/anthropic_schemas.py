"""Request models of Anthropic's Messages API. Known fields that are not offered are refused by name."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from app.api.conversation import MAX_TOOLS, Conversation, Offer, OfferedTool, ThinkingSwitch, check_tools
from app.api.openai_schemas import CallId, Label, ModelName, RefusingRequest, Steered, only
from app.api.translated import TopK
from steering.pairs import ChatMessage, ToolCall
from steering.schemas import messages as native
from steering.schemas.base import Flag, Request

MAX_BLOCKS = 1024
ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]


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


OnlyText = Annotated[TextBlock, only(("text",), "content blocks", "content")]
TextBlocks = Annotated[tuple[OnlyText, ...], Field(min_length=1, max_length=MAX_BLOCKS, fail_fast=True)]


class ThinkingBlock(Request):
    """What the model thought before an earlier answer. signature: empty in our answers; it changes nothing."""

    type: Literal["thinking"]
    thinking: native.Content
    signature: Annotated[str, Field(max_length=65_536)] | None = None


class ToolUseBlock(Request):
    """A call of an earlier answer."""

    type: Literal["tool_use"]
    id: CallId
    name: ToolName
    input: Annotated[dict[str, Any], Field(max_length=256)]
    cache_control: CacheControl | None = None


class ToolResultBlock(Request):
    """The result of a call. is_error: the model reads `Error: ` before it."""

    type: Literal["tool_result"]
    tool_use_id: CallId
    content: native.Content | Annotated[tuple[OnlyText, ...], Field(max_length=MAX_BLOCKS, fail_fast=True)] = ""
    is_error: Flag | None = None
    cache_control: CacheControl | None = None

    @property
    def text(self) -> str:
        """What the model reads."""
        return ("Error: " if self.is_error else "") + text_of(self.content)


Block = Annotated[
    Annotated[TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")],
    only(("text", "thinking", "tool_use", "tool_result"), "content blocks", "content"),
]
Blocks = Annotated[tuple[Block, ...], Field(min_length=1, max_length=MAX_BLOCKS, fail_fast=True)]


def text_of(content: str | Sequence[Block]) -> str:
    """Returns the texts of content as one."""
    return content if isinstance(content, str) else "".join(one.text for one in content if isinstance(one, TextBlock))


class InputMessage(Request):
    """A message of the conversation. Thinking and calls are the assistant's, results the user's, before any text."""

    role: Literal["user", "assistant", "system"]
    content: native.Content | Blocks

    @model_validator(mode="after")
    def _fits_role(self) -> "InputMessage":
        kinds = [] if isinstance(self.content, str) else [block.type for block in self.content]
        allowed = {"assistant": ("text", "thinking", "tool_use"), "user": ("text", "tool_result"), "system": ("text",)}
        for kind in kinds:
            if kind not in allowed[self.role]:
                raise ValueError(f"a message of role {self.role!r} has no content of type {kind!r}")
        if "tool_result" in kinds and "text" in kinds[: len(kinds) - kinds[::-1].index("tool_result")]:
            raise ValueError("the content of type 'tool_result' comes before any text of the message")
        return self

    def add_to(self, conversation: Conversation, number: int) -> None:
        """Adds the messages that the model reads: each result of a call is one. number: of this message. Raises InvalidRequest for
        results of calls that were not made."""
        blocks = () if isinstance(self.content, str) else self.content
        results = [(index, block) for index, block in enumerate(blocks) if isinstance(block, ToolResultBlock)]
        for index, block in results:
            param = f"messages.{number}.content.{index}.tool_use_id"
            conversation.answer_call(block.tool_use_id, block.text, param)
        calls = [ToolCall(one.id, one.name, one.input) for one in blocks if isinstance(one, ToolUseBlock)]
        reasoning = "".join(one.thinking for one in blocks if isinstance(one, ThinkingBlock))
        text = text_of(self.content)
        if text or calls or reasoning or not results:
            conversation.say(self.role, text, calls, reasoning)


class ToolDefinition(RefusingRequest):
    """A function that the model may call. strict: as in chat completions. eager_input_streaming: changes nothing."""

    refused: ClassVar[dict[str, Any]] = {"allowed_callers": ["direct"], "defer_loading": False, "input_examples": []}
    place = "tools."

    name: ToolName
    description: Annotated[str, Field(max_length=65_536)] | None = None
    input_schema: Annotated[dict[str, Any], Field(max_length=256)]
    type: Literal["custom"] | None = None
    strict: Flag | None = None
    eager_input_streaming: Flag | None = None
    cache_control: CacheControl | None = None


class ToolChoice(Request):
    """Whether the answer calls tools: `auto` as it likes, `any` one of them, `tool` the one of that name, `none` of them."""

    type: Literal["auto", "any", "tool", "none"]
    name: ToolName | None = None
    disable_parallel_tool_use: Flag | None = None

    @model_validator(mode="after")
    def _named(self) -> "ToolChoice":
        if (self.name is not None) != (self.type == "tool"):
            raise ValueError("'name' belongs to 'type': 'tool', and to no other")
        return self


class ThinkingChoice(Request):
    """Whether the model thinks before it answers; `adaptive` is as good as `enabled`. budget_tokens: changes nothing."""

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] | None = None


class MetaData(Request):
    """user_id: of the application; it changes nothing."""

    user_id: Label | None = None


class ConversationRequest(RefusingRequest):
    """What the model reads: the fields of POST /v1/messages/count_tokens, which POST /v1/messages has, too."""

    refused: ClassVar[dict[str, Any]] = {
        "mcp_servers": [],
        "output_config": {},
        "output_format": None,
        "context_management": None,
    }

    model: ModelName
    messages: Annotated[tuple[InputMessage, ...], Field(min_length=1, max_length=native.MAX_MESSAGES, fail_fast=True)]
    system: native.Content | TextBlocks | None = None
    tools: (
        Annotated[
            tuple[Annotated[ToolDefinition, only(("custom",), "tools", "tools")], ...],
            Field(max_length=MAX_TOOLS, fail_fast=True),
        ]
        | None
    ) = None
    tool_choice: ToolChoice | None = None
    thinking: ThinkingChoice | None = None
    cache_control: CacheControl | None = None

    @model_validator(mode="after")
    def _consistent_tools(self) -> "ConversationRequest":
        check_tools([tool.name for tool in self.tools or ()], self.offer.named, required=self.offer.required)
        return self

    def conversation(self) -> tuple[ChatMessage, ...]:
        """Returns the messages, after the system prompt; see `Conversation.continuing`."""
        found = Conversation()
        if self.system and (system := text_of(self.system)):
            found.say("system", system)
        for number, message in enumerate(self.messages):
            message.add_to(found, number)
        return found.continuing()

    @property
    def think(self) -> ThinkingSwitch | None:
        """Whether the model is to think before it answers; None where the request does not say."""
        return None if self.thinking is None else ThinkingSwitch(self.thinking.type != "disabled", "thinking")

    @property
    def offer(self) -> Offer:
        """The tools that the answer may call."""
        choice = self.tool_choice or ToolChoice(type="auto")
        if choice.type == "none":
            return Offer()
        tools = tuple(
            OfferedTool(one.name, one.description, one.input_schema, f"tools.{index}.input_schema", bool(one.strict))
            for index, one in enumerate(self.tools or ())
        )
        return Offer(tools, choice.type == "any", choice.name, bool(choice.disable_parallel_tool_use))


class MessagesRequest(ConversationRequest, Steered):
    """POST /v1/messages. seed and steering are ours, and temperature may be as high as in chat completions."""

    refused: ClassVar[dict[str, Any]] = {
        **ConversationRequest.refused,
        "container": None,
        "diagnostics": None,
        "inference_geo": None,
        "speed": "standard",
    }

    max_tokens: native.MaxTokens
    top_k: TopK | None = None
    stop_sequences: native.Stops | None = None
    stream: Flag | None = None
    metadata: MetaData | None = None
    service_tier: Label | None = None
