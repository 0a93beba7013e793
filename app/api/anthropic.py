"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's Messages API, a form of the chat completions."""

import json
import secrets
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import APIRouter, Query, Security
from fastapi.security import APIKeyHeader
from starlette.requests import Request
from starlette.responses import Response

from app.api import openai
from app.api.answer_parts import Call, Part
from app.api.anthropic_schemas import ConversationRequest, MessagesRequest
from app.api.context import AdmittedDep
from app.api.conversation import offered
from app.api.openai_schemas import shared_fields
from app.api.translated import TranslatedRequest, TranslatedWork
from app.core.answers import Event
from app.core.errors import body_of, outcome_of
from app.core.requests import ApiRoute, Handler, needs
from steering.engine.api import Finish
from steering.errors import ContextLengthExceeded, LimitExceeded, SteeringError
from steering.model.thinking import Thought
from steering.threads import run_in_thread
from steering.workflows.generate import Answer

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

        async def handle(request: Request) -> Response:
            keys = [
                (b"authorization", f"Bearer {key}".encode("latin-1")) for key in request.headers.getlist("x-api-key")
            ]
            if keys:  # beside an Authorization header it is one too many, and refused as such
                request = Request({**request.scope, "headers": [*request.scope["headers"], *keys]}, request.receive)
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
async def count_tokens(body: ConversationRequest, context: AdmittedDep, beta: Beta = None) -> dict[str, int]:  # noqa: ARG001
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
        """See GenerationWork.param."""
        return {"stop": "stop_sequences", "prompt": "messages"}.get(name, name)

    def described(self, answer: Answer) -> dict[str, Any]:
        """See TranslatedWork.described."""
        content = [_block(part) for part in self.parts.of_answer(0, answer)] or [_block("")]
        return {**self._message(content, _usage(answer.finish), self._stop(answer.finish)), **self.facts(answer)}

    def beginning(self) -> list[Event]:
        """See TranslatedWork.beginning. How much of the prompt was cached is known at the end."""
        usage = {"input_tokens": len(self.generations[0].request.prompt), "output_tokens": 0}
        message = self._message([], usage, {"stop_reason": None, "stop_sequence": None})
        return [_event("message_start", message=message)]

    def pieces(self, part: Part) -> list[Event]:
        """See TranslatedWork.pieces."""
        block = _block(part)
        events = [] if self.open == block["type"] else [*self._end_block(), self._begin_block(part)]
        if isinstance(part, Call):
            delta = {"type": "input_json_delta", "partial_json": part.arguments}
        else:
            name = block["type"]
            delta = {"type": f"{name}_delta", name: block[name]}
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
