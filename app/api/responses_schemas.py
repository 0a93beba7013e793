"""Request models of OpenAI's Responses API. Known fields that are not offered are refused by name."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationError, model_validator

from app.api.openai_schemas import (
    MAX_TOOLS,
    Call,
    CalledFunction,
    CallId,
    ChatMessage,
    ChatRequest,
    Effort,
    FunctionDefinition,
    FunctionName,
    Label,
    NamedFunction,
    NamedTool,
    OpenAIRequest,
    RefusingRequest,
    Tool,
)
from app.core.errors import describe
from steering.errors import InvalidRequest, UnsupportedParameter
from steering.schemas import messages as native
from steering.schemas.base import Flag, Request
from steering.schemas.messages import JsonObjectFormat, JsonSchema, JsonSchemaFormat, TextFormat
from steering.schemas.steering import Steering
from steering.spec import Number

Empty: TypeAlias = Annotated[tuple[None, ...], Field(max_length=0)] | None


def _only(kinds: tuple[str, ...], what: str, param: str) -> BeforeValidator:
    """Refuses objects whose `type` is another one, by its name."""

    def check(value: Any) -> Any:
        kind = value.get("type") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind not in kinds:
            listed = ", ".join(map(repr, kinds))
            raise UnsupportedParameter(
                f"{what} of type {kind[:40]!r} are not supported by this server, only {listed}", param=param
            )
        return value

    return BeforeValidator(check)


class TextPart(Request):
    """A part of a message. What a client sends back of an earlier answer besides its text must be empty; `parsed` is the
    text again, as the `openai` package adds it."""

    type: Literal["input_text", "output_text"]
    text: native.Content
    annotations: Empty = None
    logprobs: Empty = None
    parsed: Any = None


Parts: TypeAlias = Annotated[
    tuple[Annotated[TextPart, _only(("input_text", "output_text"), "content parts", "input")], ...],
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
    _only(_ITEMS, "items", "input"),
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


class ResponsesRequest(OpenAIRequest):
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
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    tools: Annotated[tuple[Annotated[FunctionTool, _only(("function",), "tools", "tools")], ...], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None  # fmt: skip
    tool_choice: Literal["none", "auto", "required"] | NamedFunctionTool | None = None
    parallel_tool_calls: Flag | None = None
    text: TextConfig | None = None
    stream: Flag | None = None
    stream_options: ResponseStreamOptions | None = None
    include: Annotated[tuple[Literal["reasoning.encrypted_content"], ...], Field(max_length=16)] | None = None
    reasoning: Reasoning | None = None
    metadata: Annotated[dict[Label, Label], Field(max_length=64)] | None = None
    service_tier: Label | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    seed: native.Seed | None = None
    steering: Steering | None = None

    @model_validator(mode="after")
    def _calls_or_matches(self) -> "ResponsesRequest":
        held = self.text is not None and self.text.format is not None and self.text.format.type != "text"
        if held and self.tools and self.tool_choice != "none":
            raise ValueError(
                "an answer that is held to 'text.format' cannot call 'tools'; give 'tool_choice': 'none', or leave one of them out"
            )
        return self

    def chat(self) -> ChatRequest:
        """Returns the chat completion that is meant, without its number of tokens. Raises InvalidRequest where there is none."""
        tools = [
            Tool(type="function", function=FunctionDefinition(**one.model_dump(exclude={"type"})))
            for one in self.tools or ()
        ]
        choice = self.tool_choice
        named = (
            NamedTool(type="function", function=NamedFunction(name=choice.name))
            if isinstance(choice, NamedFunctionTool)
            else choice
        )
        try:
            return ChatRequest(
                model=self.model,
                messages=tuple(self._messages()),
                tools=tuple(tools) or None,
                tool_choice=named,
                parallel_tool_calls=self.parallel_tool_calls,
                response_format=self._format(),
                temperature=self.temperature,
                top_p=self.top_p,
                reasoning_effort=None if self.reasoning is None else self.reasoning.effort,
                seed=self.seed,
                stream=self.stream,
                steering=self.steering,
            )
        except ValidationError as error:
            findings = error.errors(include_url=False)
            where = str(next(iter(findings[0]["loc"]), "tools"))
            raise InvalidRequest(
                describe(findings[:1]), param="input" if where in ("messages", "tool_calls") else where
            ) from None

    def _messages(self) -> Iterator[ChatMessage]:
        """Yields the conversation. A call belongs to the message of the assistant before it, reasoning to that after it, or to one
        without text where none comes. Raises InvalidRequest where nothing does."""
        if self.instructions:
            yield ChatMessage(role="system", content=self.instructions)
        if isinstance(self.input, str):
            yield ChatMessage(role="user", content=self.input)
            return
        said: str | None = None
        thought = ""
        calls: list[Call] = []
        for item in self.input:
            if isinstance(item, FunctionCall):
                function = CalledFunction(name=item.name, arguments=item.arguments)
                calls.append(Call(id=item.call_id, type="function", function=function))
                continue
            if said is not None or calls:
                yield _answered(said, thought, calls)
                said, thought, calls = None, "", []
            if isinstance(item, ReasoningItem):
                thought += "".join(part.text for part in item.content or ())
                continue
            if isinstance(item, InputMessage) and item.role == "assistant":
                said = text_of(item.content)
                continue
            if thought:
                yield _answered("", thought, [])
                thought = ""
            if isinstance(item, FunctionCallOutput):
                yield ChatMessage(role="tool", content=text_of(item.output), tool_call_id=item.call_id)
            else:
                yield ChatMessage(role=item.role, content=text_of(item.content))
        if said is not None or calls:
            yield _answered(said, thought, calls)
        elif thought:
            raise InvalidRequest(
                "the last item of 'input' is of type 'reasoning', which no other follows: thinking that has begun cannot be continued",
                param="input",
            )

    def _format(self) -> TextFormat | JsonObjectFormat | JsonSchemaFormat | None:
        form = None if self.text is None else self.text.format
        if not isinstance(form, NamedSchemaFormat):
            return form
        return JsonSchemaFormat(type="json_schema", json_schema=JsonSchema(name=form.name, schema_=form.schema_))


def _answered(said: str | None, thought: str, calls: list[Call]) -> ChatMessage:
    return ChatMessage(
        role="assistant", content=said, reasoning_content=thought or None, tool_calls=tuple(calls) or None
    )
