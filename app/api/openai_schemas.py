"""Request models of the OpenAI-compatible routes. Known fields that are not offered are refused by name."""

from abc import abstractmethod
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from app.api.conversation import MAX_TOOLS, Conversation, Offer, OfferedTool, ThinkingSwitch, call_of_text, check_tools
from steering.errors import UnsupportedParameter
from steering.pairs import ChatMessage as ModelMessage
from steering.pairs import asking, continued
from steering.schemas import messages as native
from steering.schemas.base import Flag, Request, Whole
from steering.schemas.messages import StructuredFields
from steering.schemas.steering import Steering
from steering.spec import Number

Label = Annotated[str, Field(max_length=512)]
ModelName = Annotated[str, Field(min_length=1, max_length=640)]
MAX_INPUTS = 2048
_ANY = object()
"""No value of a refused field is accepted."""
LEAST_TOP_P = 1e-6
"""What 0 means: the most probable token alone."""


class RefusingRequest(Request):
    """Base of requests in the form of another API.

    refused: the fields of that API that are not offered, each with the value that has no effect and is therefore accepted, as are
    null and, unless it is the opposite, false. place: of the fields, in errors.
    """

    refused: ClassVar[dict[str, Any]] = {}
    place: ClassVar[str] = ""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, body: Any) -> Any:
        """Returns the body without fields that have no effect. Raises UnsupportedParameter for one that would have."""
        if not isinstance(body, dict):
            return body
        for name, neutral in cls.refused.items():
            value = body.get(name)
            off = value is None or (value is False and neutral is not True)
            if not off and (neutral is _ANY or value != neutral):
                raise UnsupportedParameter(f"{name} is not supported by this server", param=cls.place + name)
        return {name: value for name, value in body.items() if name not in cls.refused}


class OpenAIRequest(RefusingRequest):
    """Fields of every request. Those that cannot change an answer are accepted and ignored."""

    model: ModelName
    user: Label | None = None


class ChatFields(Request):
    """What chat completions and responses have in common. All fields but the first cannot change an answer, and are ignored."""

    parallel_tool_calls: Flag | None = None
    metadata: Annotated[dict[Label, Label], Field(max_length=64)] | None = None
    service_tier: Label | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None

    @property
    @abstractmethod
    def call_arguments(self) -> list[str]:
        """The arguments of all calls."""

    @abstractmethod
    def conversation(self) -> tuple[ModelMessage, ...]:
        """Returns the messages that the model reads. Takes long for large arguments of calls, see `check_arguments`. Raises
        InvalidRequest for arguments that are not JSON, and results of calls that were not made."""


class Steered(Request):
    """What every API says of an answer. seed, where an API lacks it, and steering are ours. A negative seed counts modulo 2^63."""

    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(ge=0, le=1), AfterValidator(lambda value: value or LEAST_TOP_P)] | None = None
    seed: (
        Annotated[
            int,
            Field(strict=True, ge=-native.MAX_SEED - 1, le=native.MAX_SEED),
            AfterValidator(lambda value: value & native.MAX_SEED),
        ]
        | None
    ) = None
    steering: Steering | None = None


def shared_fields(body: Request, *kinds: type[Request]) -> dict[str, Any]:
    """Returns the fields of a request that requests of these kinds have by the same name."""
    names = {name for kind in kinds for name in kind.model_fields}
    return {name: getattr(body, name) for name in type(body).model_fields if name in names}


def only(kinds: tuple[str, ...], what: str, param: str) -> BeforeValidator:
    """Refuses objects of another API whose `type` is another one, by its name."""

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
    """A text part of a message. Other parts (images, audio, files) are refused."""

    type: Literal["text"]
    text: native.Content


Parts = Annotated[
    tuple[Annotated[TextPart, only(("text",), "content parts", "messages")], ...],
    Field(min_length=1, max_length=1024, fail_fast=True),
]


FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
CallId = Annotated[str, Field(min_length=1, max_length=128)]


class FunctionDefinition(Request):
    """A function that the model may call. parameters: the JSON schema of its arguments, an object; absent: it takes none.
    strict: the schema is enforced where `tool_choice` is `required` or names the function, whatever this says."""

    name: FunctionName
    description: Annotated[str, Field(max_length=16_384)] | None = None
    parameters: Annotated[dict[str, Any], Field(max_length=256)] | None = None
    strict: Flag | None = None


class Tool(Request):
    """A tool. There are functions only."""

    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(Request):
    """A function by its name."""

    name: FunctionName


class NamedTool(Request):
    """A tool by its name: the answer must call it."""

    type: Literal["function"]
    function: NamedFunction


def functions_of(functions: Iterable[FunctionDefinition], place: str) -> tuple[OfferedTool, ...]:
    """Returns the functions that a request offers. place: the field of the schema of one, with {} for its number."""
    return tuple(
        OfferedTool(one.name, one.description, one.parameters, place.format(index), bool(one.strict))
        for index, one in enumerate(functions)
    )


def _without(name: str) -> BeforeValidator:
    """Removes a field that the `openai` package adds to the messages it returns, and sends back with them."""
    return BeforeValidator(
        lambda value: {key: value[key] for key in value if key != name} if isinstance(value, dict) else value
    )


def may_only_call(message: Any) -> Any:
    """Returns a message, which may leave `content` out where it has calls."""
    calls = isinstance(message, dict) and message.get("tool_calls")
    return {"content": None, **message} if calls else message


class CalledFunction(Request):
    """A function that an earlier answer called. arguments: a JSON object, as text."""

    name: FunctionName
    arguments: native.Content


class Call(Request):
    """A call of an earlier answer."""

    id: CallId
    type: Literal["function"]
    function: Annotated[CalledFunction, _without("parsed_arguments")]


class ChatMessage(Request):
    """A message. `developer` is a system message, `tool` the result of the call `tool_call_id` of an assistant message before it.
    `reasoning_content` is what the model thought before an assistant message; its chat template decides whether it is shown. What a client echoes from an earlier answer besides `tool_calls` must be empty."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: native.Content | Parts | None
    name: Label | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[tuple[None, ...], Field(max_length=0)] | None = None
    tool_calls: (
        Annotated[tuple[Annotated[Call, _without("index")], ...], Field(max_length=MAX_TOOLS, fail_fast=True)] | None
    ) = None
    tool_call_id: CallId | None = None
    reasoning_content: native.Content | None = None

    _may_only_call = model_validator(mode="before")(may_only_call)

    @model_validator(mode="after")
    def _fits_role(self) -> "ChatMessage":
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"'tool_calls' belong to messages of role 'assistant', not {self.role!r}")
        if self.reasoning_content and self.role != "assistant":
            raise ValueError(f"'reasoning_content' belongs to messages of role 'assistant', not {self.role!r}")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError("a message of role 'tool', and no other, has 'tool_call_id': the call that it answers")
        if self.content is None and not self.tool_calls:
            raise ValueError("'content' is null only in an assistant message with 'tool_calls'")
        return self

    @property
    def text(self) -> str:
        """The content as one text."""
        if self.content is None:
            return ""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(Request):
    """include_usage: a last chunk with the usage and no choices."""

    include_usage: Flag = False
    include_obfuscation: Flag = False


class GenerationRequest(OpenAIRequest, Steered, StructuredFields):
    """Fields that chat and text completions share."""

    n: Annotated[int, Field(strict=True, ge=1, le=1024)] | None = None
    presence_penalty: native.Penalty | None = None
    frequency_penalty: native.Penalty | None = None
    logit_bias: native.LogitBias | None = None
    stop: native.Stop | native.Stops | None = None
    stream: Flag | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _streams(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("'stream_options' needs 'stream': true")
        return self

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self) -> native.SamplingFields:
        """Returns the sampling fields. OpenAI's defaults are ours, except for the temperature."""
        names = native.SamplingFields.model_fields.keys() & type(self).model_fields.keys() - {"max_tokens"}
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        return native.SamplingFields.model_validate({"temperature": 1.0, **given})


Effort: TypeAlias = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


class TemplateVariables(Request):
    """Whether the model is to think, by the name that its chat template has for it; both names mean the same."""

    enable_thinking: Flag | None = None
    thinking: Flag | None = None


class ChatRequest(GenerationRequest, ChatFields):
    """POST /v1/chat/completions. continue_final_message, add_generation_prompt: as in vLLM. Without them an answer is a new message.
    reasoning_effort: `none` keeps the model from thinking; the others are alike. chat_template_kwargs: as in vLLM, thinking only."""

    refused: ClassVar[dict[str, Any]] = {
        "functions": [],
        "function_call": "none",
        "audio": _ANY,
        "modalities": ["text"],
        "prediction": _ANY,
        "verbosity": _ANY,
        "web_search_options": _ANY,
        "moderation": _ANY,
        "prompt_cache_retention": _ANY,
        "prompt_cache_options": _ANY,
    }

    messages: Annotated[
        tuple[Annotated[ChatMessage, _without("parsed")], ...],
        Field(min_length=1, max_length=native.MAX_MESSAGES, fail_fast=True),
    ]
    tools: Annotated[tuple[Tool, ...], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    continue_final_message: Flag = False
    add_generation_prompt: Flag | None = None
    max_tokens: native.MaxTokens | None = None
    max_completion_tokens: native.MaxTokens | None = None
    logprobs: Flag | None = None
    top_logprobs: Annotated[Whole, Field(ge=0, le=1_000_000)] | None = None
    store: Flag | None = None
    reasoning_effort: Effort | None = None
    chat_template_kwargs: TemplateVariables | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "ChatRequest":
        choices = {one.wanted for one in self._thinking}
        if len(choices) > 1:
            raise ValueError("'reasoning_effort' and 'chat_template_kwargs' say different things about thinking")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("'top_logprobs' needs 'logprobs': true")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("give 'max_completion_tokens' or 'max_tokens', not both")
        if self.continue_final_message and self.messages[-1].reasoning_content:
            raise ValueError(
                "'continue_final_message' cannot continue a message with 'reasoning_content': the chat template leaves that out; "
                "leave it out, or write it into 'content' with the markers of the model"
            )
        if self.add_generation_prompt and self.continue_final_message:
            raise ValueError("give 'add_generation_prompt' or 'continue_final_message', not both")
        if self.add_generation_prompt is False and self.messages[-1].role != "assistant":
            raise ValueError("'add_generation_prompt' is false only behind a last message of the assistant")
        return self

    @model_validator(mode="after")
    def _consistent_tools(self) -> "ChatRequest":
        names = [tool.function.name for tool in self.tools or ()]
        check_tools(names, self.offer.named, required=self.offer.required)
        if self.offer.tools and self.grammar is not None:
            raise ValueError(
                "an answer that is held to 'response_format', 'guided_regex' or 'guided_grammar' cannot call 'tools'; "
                "give 'tool_choice': 'none', or leave one of them out"
            )
        if (self.offer.tools or self.call_arguments) and self.continue_final_message:
            raise ValueError("'continue_final_message' cannot be combined with tools")
        return self

    @property
    def _thinking(self) -> list[ThinkingSwitch]:
        effort, variables = self.reasoning_effort, self.chat_template_kwargs or TemplateVariables()
        found = [] if effort is None else [ThinkingSwitch(effort != "none", "reasoning_effort", effort)]
        given = variables.model_dump(exclude_none=True)
        return [*found, *(ThinkingSwitch(value, f"chat_template_kwargs.{name}") for name, value in given.items())]

    @property
    def thinking(self) -> ThinkingSwitch | None:
        """Whether the model is to think before it answers; None where the request does not say."""
        return next(iter(self._thinking), None)

    @property
    def offer(self) -> Offer:
        """The tools that the answers may call."""
        choice = self.tool_choice
        named = choice.function.name if isinstance(choice, NamedTool) else None
        offered = () if choice == "none" else self.tools or ()
        tools = functions_of((tool.function for tool in offered), "tools.{}.function.parameters")
        return Offer(tools, choice == "required", named, self.parallel_tool_calls is False)

    @property
    def call_arguments(self) -> list[str]:
        """See ChatFields."""
        return [call.function.arguments for one in self.messages for call in one.tool_calls or ()]

    def conversation(self) -> tuple[ModelMessage, ...]:
        """See ChatFields."""
        found = Conversation()
        for number, one in enumerate(self.messages):
            place = f"messages.{number}"
            if one.tool_call_id is not None:
                found.answer_call(one.tool_call_id, one.text, f"{place}.tool_call_id")
                continue
            called = ((index, call.id, call.function) for index, call in enumerate(one.tool_calls or ()))
            calls = (
                call_of_text(name, asked.name, asked.arguments, f"{place}.tool_calls.{index}.function.arguments")
                for index, name, asked in called
            )
            found.say(one.role, one.text, calls, one.reasoning_content or "")
        messages = tuple(found.messages)
        if self.continue_final_message:
            return continued(messages)
        return messages if self.add_generation_prompt is False else asking(messages)


Texts: TypeAlias = Annotated[tuple[native.PlainText, ...], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
TokenLists: TypeAlias = Annotated[
    tuple[native.TokenIds, ...], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)
]


def _form(value: Any) -> str | None:
    """Which form an input has: its first entry says what a list is of, so that an error speaks of that form alone."""
    if isinstance(value, str):
        return "<text>"
    if not isinstance(value, list | tuple):
        return None
    forms: dict[type, str] = {int: "<ids>", float: "<ids>", bool: "<ids>", list: "<lists>", tuple: "<lists>"}
    return forms.get(type(value[0]), "<texts>") if value else "<texts>"


Inputs: TypeAlias = Annotated[
    Annotated[native.PlainText, Tag("<text>")]
    | Annotated[Texts, Tag("<texts>")]
    | Annotated[native.TokenIds, Tag("<ids>")]
    | Annotated[TokenLists, Tag("<lists>")],
    Discriminator(
        _form,
        custom_error_type="input_form",
        custom_error_message="expected a text, a list of texts, a list of token ids, or a list of such lists",
    ),
]
"""A text, several, token ids, or several lists of them."""


def inputs_of(value: Inputs) -> list[str | tuple[int, ...]]:
    """Returns the inputs one by one."""
    if isinstance(value, str):
        return [value]
    if isinstance(value[0], int):
        return [tuple(one for one in value if isinstance(one, int))]
    return [one if isinstance(one, str) else tuple(one) for one in value if not isinstance(one, int)]


class CompletionRequest(GenerationRequest):
    """POST /v1/completions. max_tokens 0 is allowed with `echo`: the prompt is scored, once, and nothing is
    generated."""

    refused: ClassVar[dict[str, Any]] = {"suffix": "", "best_of": 1}

    prompt: Inputs
    max_tokens: Annotated[int, Field(strict=True, ge=0, le=1_000_000)] | None = None
    logprobs: Annotated[Whole, Field(ge=0, le=1_000_000)] | None = None
    echo: Flag | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "CompletionRequest":
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("'max_tokens': 0 needs 'echo': true")
        if self.max_tokens == 0 and (self.n or 1) > 1:
            raise ValueError("'max_tokens': 0 scores each prompt once; 'n' must be 1")
        if self.echo and self.stream:
            raise ValueError("'echo' cannot be streamed")
        return self


class EmbeddingRequest(OpenAIRequest):
    """POST /v1/embeddings. layer (ours): default the last; position (ours): `last`, `mean` or an offset from the end."""

    refused: ClassVar[dict[str, Any]] = {"dimensions": _ANY}

    input: Inputs
    encoding_format: Literal["float", "base64"] = "float"
    layer: Annotated[int, Field(strict=True, ge=-1000, le=1000)] = -1
    position: Annotated[Literal["last", "mean"] | native.Offset, native.ACTIVATION] = "mean"

    @field_validator("encoding_format", mode="before")
    @classmethod
    def _default_format(cls, value: Any) -> Any:
        return "float" if value is None else value
