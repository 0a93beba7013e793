"""Request models of Ollama's API. Known fields that are not offered are refused by name."""

from itertools import count
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from app.api.conversation import MAX_TOOLS, Conversation, Offer, ThinkingSwitch, check_tools
from app.api.openai_schemas import (
    CallId,
    FunctionName,
    Label,
    ModelName,
    RefusingRequest,
    Steered,
    Tool,
    functions_of,
)
from app.api.translated import TopK
from steering.errors import InvalidRequest
from steering.pairs import ChatMessage, ToolCall
from steering.schemas import messages as native
from steering.schemas.base import Flag, Request, Whole
from steering.schemas.steering import Steering
from steering.schemas.structured import Schema
from steering.spec import Number

Setting = Annotated[int, Field(strict=True, ge=-(2**31), lt=2**31)]
_NEWEST = ":latest"
"""The tag that Ollama's clients add to a name without one."""


def _limit(tokens: int) -> int:
    if tokens == 0:
        raise ValueError("must be at least 1, or -1 for what fits the context")
    return tokens


class Options(RefusingRequest, Steered):
    """How tokens are chosen; the defaults are those of chat completions. steering is ours: Ollama's client sends no other extra field.

    Options of how a model is loaded cannot change an answer and are ignored.
    """

    refused: ClassVar[dict[str, Any]] = {
        "num_ctx": None,
        "num_keep": None,
        "repeat_last_n": -1,
        "tfs_z": 1.0,
        "typical_p": 1.0,
        "mirostat": 0,
        "mirostat_tau": None,
        "mirostat_eta": None,
        "penalize_newline": True,
        "logits_all": False,
        "vocab_only": False,
        "embedding_only": False,
    }
    place = "options."

    top_k: TopK | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    repeat_penalty: Annotated[Number, Field(gt=0, le=100)] | None = None
    presence_penalty: native.Penalty | None = None
    frequency_penalty: native.Penalty | None = None
    stop: native.Stop | native.Stops | None = None
    num_predict: Annotated[int, Field(strict=True, ge=-2, le=1_000_000), AfterValidator(_limit)] | None = None
    numa: Flag | None = None
    num_batch: Setting | None = None
    num_gpu: Setting | None = None
    main_gpu: Setting | None = None
    num_thread: Setting | None = None
    low_vram: Flag | None = None
    f16_kv: Flag | None = None
    use_mmap: Flag | None = None
    use_mlock: Flag | None = None


class ModelRequest(RefusingRequest):
    """A request about a model."""

    model: ModelName

    def served(self, loaded: str) -> str:
        """Returns the name of the model here, without the tag of Ollama's clients unless it is part of the name. loaded: of the
        loaded model."""
        return self.model if self.model == loaded else self.model.removesuffix(_NEWEST) or self.model


class ShowRequest(ModelRequest):
    """POST /api/show."""

    verbose: Flag | None = None


class OllamaRequest(ModelRequest):
    """Fields of both routes that generate. think: whether the model thinks before it answers; levels are alike. stream: false for a whole answer. steering may also stand in `options`."""

    refused: ClassVar[dict[str, Any]] = {"logprobs": False, "top_logprobs": 0}

    think: Flag | Literal["low", "medium", "high"] | None = None
    stream: Flag | None = None
    options: Options | None = None
    format: Literal["", "json"] | Schema | None = None
    keep_alive: Number | Label | None = None
    steering: Steering | None = None

    @property
    def thinking(self) -> ThinkingSwitch | None:
        """Whether the model is to think before it answers; None where the request does not say."""
        level = self.think if isinstance(self.think, str) else None
        return None if self.think is None else ThinkingSwitch(bool(self.think), "think", level)

    @model_validator(mode="after")
    def _one_steering(self) -> "OllamaRequest":
        if self.steering is not None and self.options is not None and self.options.steering is not None:
            raise ValueError("give 'steering' or 'options.steering', not both")
        return self


class OllamaFunction(Request):
    """A function that an earlier answer called."""

    name: FunctionName
    arguments: Annotated[dict[str, Any], Field(max_length=256)]
    index: Annotated[Whole, Field(ge=0, lt=1000)] | None = None


class OllamaCall(Request):
    """A call of an earlier answer."""

    function: OllamaFunction
    id: CallId | None = None
    type: Literal["function"] | None = None


class OllamaMessage(RefusingRequest):
    """A message of a conversation. `tool` is the result of a call of the last assistant message with calls: the first one without a
    result, of the function `tool_name` where that is given. thinking: what the model thought before an assistant message."""

    refused: ClassVar[dict[str, Any]] = {"images": []}

    role: Literal["system", "user", "assistant", "tool"]
    content: native.Content | None
    tool_calls: Annotated[tuple[OllamaCall, ...], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_name: Annotated[str, Field(max_length=64)] | None = None
    thinking: native.Content | None = None

    @model_validator(mode="before")
    @classmethod
    def _may_only_call(cls, message: Any) -> Any:
        calls = isinstance(message, dict) and message.get("tool_calls")
        return {"content": None, **message} if calls else message

    @model_validator(mode="after")
    def _fits_role(self) -> "OllamaMessage":
        for name in ("tool_calls", "thinking"):
            if getattr(self, name) and self.role != "assistant":
                raise ValueError(f"{name!r} belongs to messages of role 'assistant', not {self.role!r}")
        if self.tool_name and self.role != "tool":
            raise ValueError(f"'tool_name' belongs to messages of role 'tool', not {self.role!r}")
        if self.content is None and not self.tool_calls:
            raise ValueError("'content' is null only in an assistant message with 'tool_calls'")
        return self


class OllamaTool(Tool):
    """A tool, whose type may be absent."""

    type: Literal["function"] = "function"


class OllamaChatRequest(OllamaRequest):
    """POST /api/chat."""

    messages: Annotated[tuple[OllamaMessage, ...], Field(min_length=1, max_length=native.MAX_MESSAGES, fail_fast=True)]
    tools: Annotated[tuple[OllamaTool, ...], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None

    @model_validator(mode="after")
    def _names(self) -> "OllamaChatRequest":
        check_tools([tool.function.name for tool in self.tools or ()])
        return self

    @property
    def offer(self) -> Offer:
        """The tools that the answer may call."""
        return Offer(functions_of((tool.function for tool in self.tools or ()), "tools.{}.function.parameters"))

    def conversation(self) -> tuple[ChatMessage, ...]:
        """Returns the messages; see `Conversation.continuing`. Raises InvalidRequest for a result of a call that was not made."""
        ids = map("{:09d}".format, count())  # nine letters or digits, as templates of Mistral require
        waiting: list[ToolCall] = []  # calls of the last message with any that have no result so far
        found = Conversation()
        for number, one in enumerate(self.messages):
            content = one.content or ""
            if one.role == "tool":
                call = next((call for call in waiting if one.tool_name in (None, "", call.name)), None)
                if call is None:
                    raise InvalidRequest(
                        "the last message with calls has none of this tool without a result",
                        param=f"messages.{number}.tool_name",
                    )
                waiting.remove(call)
                found.answer_call(call.id, content, f"messages.{number}")
                continue
            called = [call.function for call in one.tool_calls or ()]
            calls = [ToolCall(next(ids), function.name, function.arguments) for function in called]
            waiting = calls[:] or waiting
            found.say(one.role, content, calls, one.thinking or "")
        return found.continuing()


class OllamaGenerateRequest(OllamaRequest):
    """POST /api/generate. raw: the prompt is continued as it is, without the chat template."""

    refused: ClassVar[dict[str, Any]] = {
        **OllamaRequest.refused, "suffix": "", "template": "", "context": [], "images": [], "width": None, "height": None,
        "steps": None,
    }  # fmt: skip

    prompt: native.PlainText
    system: native.Content | None = None
    raw: Flag | None = None

    @model_validator(mode="after")
    def _raw_alone(self) -> "OllamaGenerateRequest":
        for name in ("system", "think"):
            if self.raw and getattr(self, name) not in (None, ""):
                raise ValueError(f"'raw' takes no {name!r}: the prompt is continued as it is")
        return self

    def conversation(self) -> str | tuple[ChatMessage, ...]:
        """Returns the text that is continued, or the conversation that is answered."""
        if self.raw:
            return self.prompt
        asked = ChatMessage("user", self.prompt)
        return (ChatMessage("system", self.system), asked) if self.system else (asked,)
