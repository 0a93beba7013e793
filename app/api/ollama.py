"""Ollama's API: /api/chat and /api/generate are forms of the chat completions; /api/tags, /api/show and /api/version describe the server."""

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from time import monotonic
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter
from pydantic import AfterValidator, Field, model_validator
from starlette.responses import Response

from app.api import openai
from app.api.answer_parts import Call, Part, said, thoughts
from app.api.context import AdmittedDep, Context, ContextDep
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
    may_only_call,
    shared_fields,
)
from app.api.translated import NOTHING, TopK, TranslatedRequest, TranslatedWork
from app.core.answers import Event, LineStream
from app.core.errors import body_of, outcome_of
from app.core.requests import ApiRoute, needs
from steering import __version__
from steering.engine.api import Prompt, TokenEvent
from steering.engine.capabilities import thinking_format, tool_format
from steering.errors import InvalidRequest, SteeringError
from steering.pairs import ChatMessage, ToolCall
from steering.schemas import messages as native
from steering.schemas.base import Flag, Request, Whole
from steering.schemas.messages import JsonObjectFormat, JsonSchema, JsonSchemaFormat, ResponseFormat
from steering.schemas.steering import Steering
from steering.schemas.structured import Schema
from steering.spec import Number
from steering.workflows.generate import Answer

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

    _may_only_call = model_validator(mode="before")(may_only_call)

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


_GENERATE = needs("generate") | {"x-errors": "TextError"}
_STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"application/x-ndjson": {}, "application/json": {}}}}
_UNKNOWN_TIME = "1970-01-01T00:00:00Z"


def error_form(body: dict[str, Any], _: int) -> dict[str, Any]:
    """Returns an error in Ollama's form: its message as text. The other fields stand beside it."""
    detail = body["error"]
    return {"error": detail["message"], "type": detail["type"], "param": detail["param"], "code": detail["code"]}


router = APIRouter(route_class=ApiRoute, tags=["ollama"])


@router.post("/api/chat", openapi_extra=_GENERATE, response_class=Response, responses=_STREAM)
async def chat(body: OllamaChatRequest, context: AdmittedDep) -> Response:
    """Answers a conversation, as Ollama's chat does: as a stream of lines unless `stream` is false; `steering` in and out."""
    return await _answered(body, body.conversation(), context, "message", body.offer)


@router.post("/api/generate", openapi_extra=_GENERATE, response_class=Response, responses=_STREAM)
async def generate(body: OllamaGenerateRequest, context: AdmittedDep) -> Response:
    """Answers a prompt, or with `raw` continues it: as a stream of lines unless `stream` is false; `steering` in and out."""
    return await _answered(body, body.conversation(), context, "response")


@router.get("/api/tags", openapi_extra=_GENERATE)
async def tags(context: ContextDep) -> dict[str, Any]:
    """Lists the loaded model and each profile as `<model>@<profile>`."""
    return {"models": [_described(one, context) for one in (await openai.models(context))["data"]]}


@router.post("/api/show", openapi_extra=_GENERATE)
async def show(body: ShowRequest, context: ContextDep) -> dict[str, Any]:
    """Describes one model."""
    engine, info = context.engine, context.engine.info
    described = _described(await openai.model(body.served(info.name), context), context)
    kind = described["details"]["family"]
    facts = {"context_length": info.context_length, "embedding_length": info.d_model, "block_count": info.layer_count}
    return {
        **described,
        "parameters": "",
        "template": "",
        "capabilities": [
            "completion",
            *(["tools"] if tool_format(engine) else []),
            *(["thinking"] if thinking_format(engine) else []),
        ],
        "model_info": {
            "general.architecture": kind,
            "general.parameter_count": info.parameter_count,
            **{f"{kind}.{name}": value for name, value in facts.items()},
        },
    }


@router.get("/api/version", openapi_extra=_GENERATE)
async def version() -> dict[str, str]:
    """Returns the version of this server, not of Ollama."""
    return {"version": __version__}


def _described(item: dict[str, Any], context: Context) -> dict[str, Any]:
    """Describes a model as Ollama's list does. item: as in `GET /v1/models`; a profile has more fields."""
    info = context.engine.info
    own: dict[str, Any] = {name: item[name] for name in ("profile", "namespace", "description") if name in item}
    family = info.architecture.lower()
    details = {
        "parent_model": info.name if own else "",
        "format": "safetensors",
        "family": family,
        "families": [family],
        "parameter_size": f"{info.parameter_count / 1e6:.0f}M" if info.parameter_count < 1e9 else f"{info.parameter_count / 1e9:.1f}B",
        "quantization_level": info.dtype,
    }  # fmt: skip
    return {
        "name": item["id"],
        "model": item["id"],
        "modified_at": _UNKNOWN_TIME,
        "size": info.parameter_count * (4 if info.dtype == "float32" else 2),
        "digest": info.fingerprint,
        "details": details,
        **own,
    }


async def _answered(
    body: OllamaRequest, prompt: Prompt, context: Context, said: str, offer: Offer = NOTHING
) -> Response:
    """Answers a request of either route. said: the field of its answers that has the text."""
    options = body.options or Options()
    given = shared_fields(options, TranslatedRequest)
    if options.steering is None:
        given["steering"] = body.steering
    asked = TranslatedRequest(
        **given,
        model=body.served(context.engine.info.name),
        repetition_penalty=options.repeat_penalty,
        stream=body.stream is not False,
        response_format=_format(body),
    )
    limit = options.num_predict if options.num_predict is not None and options.num_predict > 0 else None
    work = OllamaWork(context, asked, None, body.model, said)
    return await work.answer(prompt, limit, offer, body.thinking)


def _format(body: OllamaRequest) -> ResponseFormat | None:
    if isinstance(body.format, dict):
        return JsonSchemaFormat(type="json_schema", json_schema=JsonSchema(name="answer", schema_=body.format))
    return JsonObjectFormat(type="json_object") if body.format else None


@dataclass(eq=False)
class OllamaWork(TranslatedWork):
    """An answer in lines, or as one object.

    model: as the request names it.
    text_field: the field that has the text, or the message with it.
    arrived, scheduled, first: when the request was parsed, when it left the queue, and when its first token arrived, by monotonic().
    """

    model: str
    text_field: str
    arrived: float = field(default_factory=monotonic, init=False)
    scheduled: float | None = field(default=None, init=False)
    first: float | None = field(default=None, init=False)

    form = LineStream

    def param(self, name: str) -> str:
        """See GenerationWork.param."""
        prompt = "messages" if self.text_field == "message" else "prompt"
        options = {"stop": "options.stop", "max_tokens": "options.num_predict"}
        return {**options, "response_format": "format", "prompt": prompt, "messages": prompt}.get(name, name)

    def described(self, answer: Answer) -> dict[str, Any]:
        """See TranslatedWork.described."""
        parts = self.parts.of_answer(0, answer)
        calls = [part for part in parts if isinstance(part, Call)]
        return self._last(answer, self._line(said(parts), thoughts(parts), calls))

    def pieces(self, part: Part) -> list[Event]:
        """See TranslatedWork.pieces."""
        one = [part]
        calls = [part] if isinstance(part, Call) else []
        return [Event({**self._line(said(one), thoughts(one), calls), "done": False})]

    def ending(self, answer: Answer) -> list[Event]:
        """See TranslatedWork.ending."""
        return [Event(self._last(answer, self._line("")))]

    def failure(self, error: SteeringError) -> tuple[Event, ...]:
        """See GenerationWork.failure."""
        return (Event(error_form(body_of(error), outcome_of(error).status)),)

    async def _events(self) -> AsyncGenerator[tuple[int, TokenEvent], None]:
        async with aclosing(super()._events()) as arriving:
            async for index, event in arriving:
                if self.first is None:
                    self.scheduled, self.first = event.scheduled, monotonic()
                yield index, event

    def _line(self, text: str, thinking: str = "", calls: Sequence[Call] = ()) -> dict[str, Any]:
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        head = {"model": self.model, "created_at": now}
        thought = {"thinking": thinking} if thinking else {}
        if self.text_field != "message":
            return {**head, self.text_field: text, **thought}
        called = [
            {"id": one.id, "function": {"index": one.index, "name": one.name, "arguments": json.loads(one.arguments)}}
            for one in calls
        ]
        message = {"role": "assistant", "content": text, **thought, **({"tool_calls": called} if called else {})}
        return {**head, "message": message}

    def _last(self, answer: Answer, line: dict[str, Any]) -> dict[str, Any]:
        """Describes the end of an answer, after what the line says. Durations are in nanoseconds; the model is loaded before any
        request."""
        now, finish = monotonic(), answer.finish
        first = now if self.first is None else self.first
        scheduled = self.arrived if self.scheduled is None else self.scheduled
        seconds = {"total": now - self.arrived, "load": 0.0, "prompt_eval": first - scheduled, "eval": now - first}
        durations = {f"{name}_duration": max(0, round(1e9 * value)) for name, value in seconds.items()}
        counts = {"prompt_eval_count": finish.prompt_tokens, "eval_count": finish.completion_tokens}
        return {**line, "done": True, "done_reason": finish.reason, **durations, **counts, **self.facts(answer)}
