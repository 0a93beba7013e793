"""Request models of OpenAI's Responses API. Known fields that are not offered are refused by name."""

from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator

from app.api.conversation import MAX_TOOLS, Conversation, Offer, ThinkingSwitch, call_of_text, check_tools
from app.api.openai_schemas import (
    CallId,
    ChatFields,
    Effort,
    FunctionDefinition,
    FunctionName,
    Label,
    NamedFunction,
    OpenAIRequest,
    RefusingRequest,
    Steered,
    functions_of,
    only,
)
from steering.errors import InvalidRequest
from steering.pairs import ChatMessage, ToolCall, asking
from steering.schemas import messages as native
from steering.schemas.base import Flag, Request
from steering.schemas.messages import JsonObjectFormat, JsonSchema, JsonSchemaFormat, ResponseFormat, TextFormat

Empty: TypeAlias = Annotated[tuple[None, ...], Field(max_length=0)] | None


class TextPart(Request):
    """A part of a message. What a client sends back of an earlier answer besides its text must be empty; `parsed` is the
    text again, as the `openai` package adds it."""

    type: Literal["input_text", "output_text"]
    text: native.Content
    annotations: Empty = None
    logprobs: Empty = None
    parsed: Any = None


Parts: TypeAlias = Annotated[
    tuple[Annotated[TextPart, only(("input_text", "output_text"), "content parts", "input")], ...],
    Field(min_length=1, max_length=1024, fail_fast=True),
]
Content: TypeAlias = native.Content | Parts


def text_of(content: Content) -> str:
    """Returns content as one text."""
    return content if isinstance(content, str) else "".join(part.text for part in content)


class _Item(Request):
    """id, status: of an item of an earlier answer; they change nothing."""

    id: Label | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None


class InputMessage(_Item):
    """A message. `developer` is a system message. phase: of a message of the assistant; it changes nothing."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    phase: Literal["commentary", "final_answer"] | None = None


class FunctionCall(_Item):
    """A call of an earlier answer. arguments: a JSON object, as text; `parsed_arguments` are the same again, as the `openai`
    package adds them."""

    type: Literal["function_call"]
    call_id: CallId
    name: FunctionName
    arguments: native.Content
    parsed_arguments: Any = None


class FunctionCallOutput(_Item):
    """The result of a call."""

    type: Literal["function_call_output"]
    call_id: CallId
    output: Content


class ReasoningPart(Request):
    """A part of what was thought."""

    type: Literal["reasoning_text"]
    text: native.Content


class ReasoningItem(_Item):
    """What an earlier answer thought before the next item of the assistant. summary, encrypted_content: empty, as answers have them."""

    type: Literal["reasoning"]
    summary: Empty = None
    content: Annotated[tuple[ReasoningPart, ...], Field(max_length=1024, fail_fast=True)] | None = None
    encrypted_content: Empty = None


_ITEMS = ("message", "reasoning", "function_call", "function_call_output")


def _tag(item: Any) -> str | None:
    kind = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)
    return f"<{kind}>" if kind in _ITEMS else None


Item: TypeAlias = Annotated[
    Annotated[InputMessage, Tag("<message>")]
    | Annotated[ReasoningItem, Tag("<reasoning>")]
    | Annotated[FunctionCall, Tag("<function_call>")]
    | Annotated[FunctionCallOutput, Tag("<function_call_output>")],
    Discriminator(_tag, custom_error_type="item_form", custom_error_message=f"expected an object of type {', '.join(_ITEMS)}"),
    only(_ITEMS, "items", "input"),
]  # fmt: skip
Items: TypeAlias = Annotated[tuple[Item, ...], Field(min_length=1, max_length=native.MAX_MESSAGES, fail_fast=True)]


class FunctionTool(FunctionDefinition):
    """A function that the model may call."""

    type: Literal["function"]


class NamedFunctionTool(NamedFunction):
    """A function that the answer must call."""

    type: Literal["function"]


class NamedSchemaFormat(JsonSchema):
    """JSON that matches a schema."""

    type: Literal["json_schema"]


class TextConfig(RefusingRequest):
    """format: what the text of the answer must match."""

    refused: ClassVar[dict[str, Any]] = {"verbosity": "medium"}
    place: ClassVar[str] = "text."

    format: Annotated[TextFormat | JsonObjectFormat | NamedSchemaFormat, Field(discriminator="type")] | None = None


class ResponseStreamOptions(Request):
    """include_obfuscation: only false; nothing is added to events."""

    include_obfuscation: Literal[False] | None = None


class Reasoning(RefusingRequest):
    """effort: as `reasoning_effort` of chat completions."""

    refused: ClassVar[dict[str, Any]] = {"summary": None, "generate_summary": None}
    place: ClassVar[str] = "reasoning."

    effort: Effort | None = None


class ResponsesRequest(OpenAIRequest, ChatFields, Steered):
    """POST /v1/responses. Nothing is stored: `input` is the whole conversation. seed and steering are ours. `include` may name
    the encrypted reasoning, which no answer has."""

    refused: ClassVar[dict[str, Any]] = {
        "store": None,
        "previous_response_id": None,
        "conversation": None,
        "background": None,
        "background_options": None,
        "prompt": None,
        "top_logprobs": 0,
        "truncation": "disabled",
        "max_tool_calls": None,
        "context_management": [],
        "moderation": None,
        "image": None,
        "access_programs": None,
        "prompt_cache_retention": None,
        "prompt_cache_options": None,
    }

    input: native.PlainText | Items
    instructions: native.Content | None = None
    max_output_tokens: native.MaxTokens | None = None
    tools: Annotated[tuple[Annotated[FunctionTool, only(("function",), "tools", "tools")], ...], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None  # fmt: skip
    tool_choice: Literal["none", "auto", "required"] | NamedFunctionTool | None = None
    text: TextConfig | None = None
    stream: Flag | None = None
    stream_options: ResponseStreamOptions | None = None
    include: Annotated[tuple[Literal["reasoning.encrypted_content"], ...], Field(max_length=16)] | None = None
    reasoning: Reasoning | None = None

    @model_validator(mode="after")
    def _calls_or_matches(self) -> "ResponsesRequest":
        check_tools([tool.name for tool in self.tools or ()], self.offer.named, required=self.offer.required)
        held = self.text is not None and self.text.format is not None and self.text.format.type != "text"
        if held and self.tools and self.tool_choice != "none":
            raise ValueError(
                "an answer that is held to 'text.format' cannot call 'tools'; give 'tool_choice': 'none', or leave one of them out"
            )
        return self

    @property
    def response_format(self) -> ResponseFormat | None:
        """What the text must match, as chat completions have it."""
        form = None if self.text is None else self.text.format
        if not isinstance(form, NamedSchemaFormat):
            return form
        return JsonSchemaFormat(type="json_schema", json_schema=JsonSchema(name=form.name, schema_=form.schema_))

    @property
    def thinking(self) -> ThinkingSwitch | None:
        """Whether the model is to think before it answers; None where the request does not say."""
        effort = None if self.reasoning is None else self.reasoning.effort
        return None if effort is None else ThinkingSwitch(effort != "none", "reasoning.effort", effort)

    @property
    def offer(self) -> Offer:
        """The tools that the answer may call."""
        choice = self.tool_choice
        named = choice.name if isinstance(choice, NamedFunctionTool) else None
        tools = functions_of(() if choice == "none" else self.tools or (), "tools.{}.parameters")
        return Offer(tools, choice == "required", named, self.parallel_tool_calls is False)

    @property
    def call_arguments(self) -> list[str]:
        """See ChatFields."""
        items = () if isinstance(self.input, str) else self.input
        return [item.arguments for item in items if isinstance(item, FunctionCall)]

    def conversation(self) -> tuple[ChatMessage, ...]:
        """See ChatFields. A call belongs to the message of the assistant before it, reasoning to that after it, or to one without text
        where none comes. Raises InvalidRequest where nothing does."""
        found = Conversation()
        if self.instructions:
            found.say("system", self.instructions)
        items = (InputMessage(role="user", content=self.input),) if isinstance(self.input, str) else self.input
        text: str | None = None  # of the assistant's message that is being read
        thought, calls = "", list[ToolCall]()
        for item in items:
            begins = isinstance(item, ReasoningItem) or (isinstance(item, InputMessage) and item.role == "assistant")
            begun = text is not None or bool(calls)
            if not isinstance(item, FunctionCall) and (begun or (thought and not begins)):
                found.say("assistant", text or "", calls, thought)
                text, thought, calls = None, "", []
            if isinstance(item, FunctionCall):
                calls.append(call_of_text(item.call_id, item.name, item.arguments, "input"))
                if len(calls) > MAX_TOOLS:
                    raise InvalidRequest(f"a message has at most {MAX_TOOLS} calls", param="input")
            elif isinstance(item, ReasoningItem):
                thought += "".join(part.text for part in item.content or ())
            elif isinstance(item, FunctionCallOutput):
                found.answer_call(item.call_id, text_of(item.output), "input")
            elif item.role == "assistant":
                text = text_of(item.content)
            else:
                found.say(item.role, text_of(item.content))
        if text is not None or calls:
            found.say("assistant", text or "", calls, thought)
        elif thought:
            raise InvalidRequest(
                "the last item of 'input' is of type 'reasoning', which no other follows: thinking that has begun cannot be continued",
                param="input",
            )
        return asking(tuple(found.messages))
