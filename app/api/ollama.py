"""Ollama's API: /api/chat and /api/generate are forms of the chat completions; /api/tags, /api/show and /api/version describe the server."""

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from app.api import openai
from app.api.answer_parts import Call, Part, said, thoughts
from app.api.context import AdmittedDep, Context, ContextDep
from app.api.conversation import Offer
from app.api.ollama_schemas import OllamaChatRequest, OllamaGenerateRequest, OllamaRequest, Options, ShowRequest
from app.api.openai_schemas import shared_fields
from app.api.translated import NOTHING, TranslatedRequest, TranslatedWork
from app.core.answers import Event, LineStream
from app.core.errors import body_of, outcome_of
from app.core.requests import ApiRoute, needs
from steering import __version__
from steering.engine.api import Prompt, TokenEvent
from steering.engine.capabilities import thinking_format, tool_format
from steering.errors import SteeringError
from steering.schemas.messages import JsonObjectFormat, JsonSchema, JsonSchemaFormat, ResponseFormat
from steering.workflows.generate import Answer

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
        """See TranslatedWork.param."""
        prompt = "messages" if self.text_field == "message" else "prompt"
        options = {"stop": "options.stop", "max_tokens": "options.num_predict"}
        return {**options, "response_format": "format", "prompt": prompt}.get(name, name)

    def described(self, answer: Answer) -> dict[str, Any]:
        """See TranslatedWork.described."""
        parts = self.parts.of_answer(0, answer)
        calls = [part for part in parts if isinstance(part, Call)]
        return self._last(answer, self._line(said(parts), thoughts(parts), calls))

    def beginning(self) -> list[Event]:
        """See TranslatedWork.beginning."""
        return []

    def pieces(self, part: Part) -> list[Event]:
        """See TranslatedWork.pieces."""
        one = [part]
        calls = [part] if isinstance(part, Call) else []
        return [Event({**self._line(said(one), thoughts(one), calls), "done": False})]

    def ending(self, answer: Answer) -> list[Event]:
        """See TranslatedWork.ending."""
        return [Event(self._last(answer, self._line("")))]

    def failure(self, error: SteeringError) -> tuple[Event, ...]:
        """See TranslatedWork.failure."""
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
        return {
            **line,
            "done": True,
            "done_reason": finish.reason,
            **durations,
            **counts,
            **self.facts(answer),
        }
