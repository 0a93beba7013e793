"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's Messages API, a form of the chat completions."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Security
from fastapi.security import APIKeyHeader
from starlette.requests import Request
from starlette.responses import Response

from app.api import openai
from app.api.anthropic_schemas import CountTokensRequest, MessagesRequest
from app.api.context import AdmittedDep
from app.api.translated import TranslatedRequest, TranslatedWork
from app.core.answers import Event
from app.core.errors import body_of, outcome_of
from app.core.requests import ApiRoute, Handler, needs
from steering.engine.api import Finish
from steering.errors import ContextLengthExceeded, LimitExceeded, SteeringError
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
                (b"authorization", b"Bearer " + value)
                for name, value in request.scope["headers"]
                if name == b"x-api-key"
            ]
            if keys:  # beside an Authorization header it is one too many, and refused as such
                request = Request({**request.scope, "headers": [*request.scope["headers"], *keys]}, request.receive)
            return await handler(request)

        return handle


router = APIRouter(route_class=AnthropicRoute, tags=["anthropic"], dependencies=[Security(_KEY)])


@router.post("/v1/messages", openapi_extra=_GENERATE, response_class=Response, responses=_STREAM)
async def messages(body: MessagesRequest, context: AdmittedDep, beta: Beta = None) -> Response:  # noqa: ARG001
    """Answers a conversation, as Anthropic's messages do; `steering` in and out."""
    asked = TranslatedRequest(
        model=body.model,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        stop=body.stop_sequences,
        stream=body.stream,
        seed=body.seed,
        steering=body.steering,
    )
    return await MessageWork(context, asked, None).answer(body.conversation(), body.max_tokens)


@router.post("/v1/messages/count_tokens", openapi_extra=_GENERATE)
async def count_tokens(body: CountTokensRequest, context: AdmittedDep, beta: Beta = None) -> dict[str, int]:  # noqa: ARG001
    """Counts the tokens of a conversation as the model reads it. It may be longer than the context."""
    prompt = body.conversation()
    context.check_messages(prompt)
    await openai.model(body.model, context)  # raises where there is none of this name
    try:
        ids = await run_in_thread(context.engine.tokenizer.encode, prompt, context.settings.max_scored_tokens)
    except ContextLengthExceeded as error:
        raise LimitExceeded(error.message, param="messages") from None
    context.charge(len(ids))
    return {"input_tokens": len(ids)}


@dataclass(eq=False)
class MessageWork(TranslatedWork):
    """An answer as a message with one block of text."""

    @property
    def params(self) -> Mapping[str, str]:
        """See TranslatedWork.params."""
        return {"stop": "stop_sequences", "prompt": "messages"}

    def described(self, answer: Answer) -> dict[str, Any]:
        """See TranslatedWork.described."""
        content = [{"type": "text", "text": answer.text}]
        return {**self._message(content, _usage(answer.finish), _stop(answer.finish)), **self.facts(answer)}

    def beginning(self) -> list[Event]:
        """See TranslatedWork.beginning. How much of the prompt was cached is known at the end."""
        usage = {"input_tokens": len(self.generation.request.prompt), "output_tokens": 0}
        message = self._message([], usage, {"stop_reason": None, "stop_sequence": None})
        block = {"index": 0, "content_block": {"type": "text", "text": ""}}
        return [_event("message_start", message=message), _event("content_block_start", **block)]

    def piece(self, text: str) -> Event:
        """See TranslatedWork.piece."""
        return _event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})

    def ending(self, answer: Answer) -> list[Event]:
        """See TranslatedWork.ending."""
        ended = {"delta": _stop(answer.finish), "usage": _usage(answer.finish), **self.facts(answer)}
        return [_event("content_block_stop", index=0), _event("message_delta", **ended), _event("message_stop")]

    def failure(self, error: SteeringError) -> tuple[Event, ...]:
        """See TranslatedWork.failure."""
        return (Event(error_form(body_of(error), outcome_of(error).status), "error"),)

    def _message(self, content: list[dict[str, Any]], usage: dict[str, int], stop: dict[str, Any]) -> dict[str, Any]:
        head = {"id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant", "model": self.body.model}
        return {**head, "content": content, **stop, "usage": usage}


def _stop(finish: Finish) -> dict[str, Any]:
    reason = _STOP_REASONS[finish.reason] if finish.stop is None else "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": finish.stop}


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
