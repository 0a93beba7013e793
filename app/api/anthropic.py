"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's Messages API, a form of the chat completions."""

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Query, Security
from fastapi.security import APIKeyHeader
from pydantic import Field, model_validator
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from app.api import openai
from app.api.answer_parts import Call, Part
from app.api.context import AdmittedDep
from app.api.conversation import MAX_TOOLS, Conversation, Offer, OfferedTool, ThinkingSwitch, check_tools, offered
from app.api.openai_schemas import CallId, Label, ModelName, RefusingRequest, Steered, only, shared_fields
from app.api.translated import TopK, TranslatedRequest, TranslatedWork
from app.core.answers import Event
from app.core.errors import body_of, outcome_of
from app.core.requests import ApiRoute, Handler, needs
from steering.engine.api import Finish
from steering.errors import ContextLengthExceeded, LimitExceeded, SteeringError
from steering.model.thinking import Thought
from steering.pairs import ChatMessage, ToolCall
from steering.schemas import messages as native
from steering.schemas.base import Flag, Request
from steering.threads import run_in_thread
from steering.workflows.generate import Answer

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
    """Fields of both routes: what the model reads."""

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
            OfferedTool(
                tool.name, tool.description, tool.input_schema, f"tools.{index}.input_schema", bool(tool.strict)
            )
            for index, tool in enumerate(self.tools or ())
        )
        return Offer(tools, choice.type == "any", choice.name, bool(choice.disable_parallel_tool_use))


class CountTokensRequest(ConversationRequest):
    """POST /v1/messages/count_tokens."""


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


_KEY = APIKeyHeader(name="x-api-key", scheme_name="x-api-key", auto_error=False, description="The same key.")
_GENERATE = needs("generate") | {"x-errors": "TypedError"}
_STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}, "application/json": {}}}}
_STOP_REASONS = {"length": "max_tokens", "stop": "end_turn", "monitor": "refusal"}
Beta = Annotated[bool | None, Query(description="Sent by the `beta` methods of Anthropic's client; changes nothing.")]


def error_form(body: dict[str, Any], status: int) -> dict[str, Any]:
    """Returns an error in Anthropic's form, in which `param` and `code` are extra fields."""
    kind = body["error"]["type"]
    if status >= 500:
        kind = "api_error"
    if status == 413:
        kind = "request_too_large"
    return {"type": "error", "error": {**body["error"], "type": kind}}


class AnthropicRoute(ApiRoute):
    """A route of Anthropic's API: it takes the key in `x-api-key` as well."""

    def get_route_handler(self) -> Handler:
        """Returns the handler of ApiRoute, for the request with its key as `Authorization: Bearer`."""
        handler = super().get_route_handler()

        async def handle(request: HttpRequest) -> Response:
            keys = [
                (b"authorization", b"Bearer " + value)
                for name, value in request.scope["headers"]
                if name == b"x-api-key"
            ]
            if keys:  # beside an Authorization header it is one too many, and refused as such
                request = HttpRequest({**request.scope, "headers": [*request.scope["headers"], *keys]}, request.receive)
            return await handler(request)

        return handle


router = APIRouter(route_class=AnthropicRoute, tags=["anthropic"], dependencies=[Security(_KEY)])


@router.post("/v1/messages", openapi_extra=_GENERATE, response_class=Response, responses=_STREAM)
async def messages(body: MessagesRequest, context: AdmittedDep, beta: Beta = None) -> Response:  # noqa: ARG001
    """Answers a conversation, as Anthropic's messages do; `steering` in and out."""
    asked = TranslatedRequest(**shared_fields(body, TranslatedRequest), stop=body.stop_sequences)
    work = MessageWork(context, asked, None)
    if body.thinking is not None and body.thinking.budget_tokens is not None:
        work.warnings.append(
            "'thinking.budget_tokens' changes nothing: 'max_tokens' bounds thinking and answer together"
        )
    return await work.answer(body.conversation(), body.max_tokens, body.offer, body.think)


@router.post("/v1/messages/count_tokens", openapi_extra=_GENERATE)
async def count_tokens(body: CountTokensRequest, context: AdmittedDep, beta: Beta = None) -> dict[str, int]:  # noqa: ARG001
    """Counts the tokens of a conversation as the model reads it. It may be longer than the context."""
    prompt = body.conversation()
    context.check_messages(prompt)
    await openai.model(body.model, context)  # raises where there is none of this name
    shown, _ = await offered(context.engine, prompt, body.offer, body.think)
    try:
        ids = await run_in_thread(context.engine.tokenizer.encode, shown, context.settings.max_scored_tokens)
    except ContextLengthExceeded as error:
        raise LimitExceeded(error.message, param="messages") from None
    context.charge(len(ids))
    return {"input_tokens": len(ids)}


@dataclass(eq=False)
class MessageWork(TranslatedWork):
    """An answer as a message of blocks: thinking, text and calls of tools.

    open: the kind of the block that a stream has begun; None before the first one and after a call.
    blocks: how many were begun.
    """

    open: str | None = field(default=None, init=False)
    blocks: int = field(default=0, init=False)

    def param(self, name: str) -> str:
        """See TranslatedWork.param."""
        return {"stop": "stop_sequences", "prompt": "messages"}.get(name, name)

    def described(self, answer: Answer) -> dict[str, Any]:
        """See TranslatedWork.described."""
        content = [_block(part) for part in self.parts.of_answer(0, answer)] or [_block("")]
        return {**self._message(content, _usage(answer.finish), self._stop(answer.finish)), **self.facts(answer)}

    def beginning(self) -> list[Event]:
        """See TranslatedWork.beginning. How much of the prompt was cached is known at the end."""
        usage = {"input_tokens": len(self.generation.request.prompt), "output_tokens": 0}
        message = self._message([], usage, {"stop_reason": None, "stop_sequence": None})
        return [_event("message_start", message=message)]

    def pieces(self, part: Part) -> list[Event]:
        """See TranslatedWork.pieces."""
        block = _block(part)
        events = [] if self.open == block["type"] else [*self._end_block(), self._begin_block(part)]
        if isinstance(part, str):
            delta = {"type": "text_delta", "text": part}
        elif isinstance(part, Thought):
            delta = {"type": "thinking_delta", "thinking": part.text}
        else:
            delta = {"type": "input_json_delta", "partial_json": part.arguments}
        events.append(_event("content_block_delta", index=self.blocks - 1, delta=delta))
        return [*events, *self._end_block()] if isinstance(part, Call) else events

    def _begin_block(self, part: Part) -> Event:
        """Begins a block, which is empty."""
        block = _block(part)
        block |= {name: type(block[name])() for name in ("text", "thinking", "input") if name in block}
        self.open, self.blocks = block["type"], self.blocks + 1
        return _event("content_block_start", index=self.blocks - 1, content_block=block)

    def _end_block(self) -> list[Event]:
        if self.open is None:
            return []
        self.open = None
        return [_event("content_block_stop", index=self.blocks - 1)]

    def ending(self, answer: Answer) -> list[Event]:
        """See TranslatedWork.ending."""
        empty = [] if self.blocks else [self._begin_block("")]
        usage = _usage(answer.finish)
        ended = _event("message_delta", delta=self._stop(answer.finish), usage=usage, **self.facts(answer))
        return [*empty, *self._end_block(), ended, _event("message_stop")]

    def failure(self, error: SteeringError) -> tuple[Event, ...]:
        """See GenerationWork.failure."""
        return (Event(error_form(body_of(error), outcome_of(error).status), "error"),)

    def _message(self, content: list[dict[str, Any]], usage: dict[str, int], stop: dict[str, Any]) -> dict[str, Any]:
        head = {"id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant", "model": self.body.model}
        return {**head, "content": content, **stop, "usage": usage}

    def _stop(self, finish: Finish) -> dict[str, Any]:
        reason = _STOP_REASONS[finish.reason] if finish.stop is None else "stop_sequence"
        if reason == "end_turn" and self.parts.reader(0).calls:
            reason = "tool_use"
        return {"stop_reason": reason, "stop_sequence": finish.stop}


def _block(part: Part) -> dict[str, Any]:
    """Describes a part of an answer as a block of content."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if isinstance(part, Thought):
        return {"type": "thinking", "thinking": part.text, "signature": ""}
    return {"type": "tool_use", "id": part.id, "name": part.name, "input": json.loads(part.arguments)}


def _event(name: str, **fields: Any) -> Event:
    return Event({"type": name, **fields}, name)


def _usage(finish: Finish) -> dict[str, int]:
    """Returns the tokens. As in Anthropic's API, those read from the cache are not among the input tokens."""
    return {
        "input_tokens": finish.prompt_tokens - finish.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": finish.cached_tokens,
        "output_tokens": finish.completion_tokens,
    }
