"""POST /v1/responses: OpenAI's Responses API without stored state, a form of the chat completions."""

import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from app.api.answer_parts import Call, Part
from app.api.context import AdmittedDep
from app.api.openai import conversation_of
from app.api.openai_schemas import OpenAIRequest, Steered, shared_fields
from app.api.responses_schemas import ResponsesRequest
from app.api.translated import TranslatedRequest, TranslatedWork
from app.core.admission import check_limit
from app.core.answers import Event
from app.core.errors import body_of
from app.core.requests import ApiRoute, needs
from steering.engine.api import Finish
from steering.errors import SteeringError
from steering.model.thinking import Thought, joined
from steering.workflows.generate import Answer

_STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}, "application/json": {}}}}
_INCOMPLETE = {"length": "max_output_tokens", "monitor": "content_filter"}
_PARAMS = {"max_tokens": "max_output_tokens", "response_format": "text.format"}

router = APIRouter(route_class=ApiRoute, tags=["openai"])


@router.post("/v1/responses", openapi_extra=needs("generate"), response_class=Response, responses=_STREAM)
async def responses(body: ResponsesRequest, context: AdmittedDep) -> Response:
    """Answers a conversation, as OpenAI's responses do, without storing anything; `steering` in and out."""
    if not isinstance(body.input, str):
        check_limit(len(body.input), context.settings.max_messages, "items", "input")
    asked = TranslatedRequest(
        **shared_fields(body, OpenAIRequest, Steered), stream=body.stream, response_format=body.response_format
    )
    work = ResponseWork(context, asked, None, body)
    with work.renaming():
        work.check()
        prompt = await conversation_of(context, body)
    return await work.answer(prompt, body.max_output_tokens, body.offer, body.thinking)


@dataclass(eq=False)
class ResponseWork(TranslatedWork):
    """A response: items of thoughts, of text and of calls, in the order in which they were generated.

    id: of the response. created: when the request arrived, as Unix time.
    output: its items so far. The parts of the last one are in `open` while more may come.
    sent: how many events there were.
    """

    asked: ResponsesRequest
    id: str = field(default_factory=lambda: f"resp_{secrets.token_hex(12)}", init=False)
    created: int = field(default_factory=lambda: int(time.time()), init=False)
    output: list[dict[str, Any]] = field(default_factory=list, init=False)
    open: list[str | Thought] = field(default_factory=list, init=False)
    sent: int = field(default=0, init=False)

    def param(self, name: str) -> str:
        """See GenerationWork.param. Messages are not numbered as items are."""
        return "input" if name.split(".", maxsplit=1)[0] in ("messages", "prompt") else _PARAMS.get(name, name)

    def described(self, answer: Answer) -> dict[str, Any]:
        """See TranslatedWork.described. A whole response is what a stream ends with."""
        for part in self.parts.of_answer(0, answer):
            self.pieces(part)
        self._close(answer)
        return self._described(answer)

    def beginning(self) -> list[Event]:
        """See TranslatedWork.beginning."""
        begun = self._described()
        return [self._state_event(name, begun) for name in ("created", "in_progress")]

    def pieces(self, part: Part) -> list[Event]:
        """See TranslatedWork.pieces."""
        return list(self._call_events(part) if isinstance(part, Call) else self._text_events(part))

    def ending(self, answer: Answer) -> list[Event]:
        """See TranslatedWork.ending."""
        last = self._close(answer)
        whole = self._described(answer)
        return [*last, self._state_event(whole["status"], whole)]

    def _close(self, answer: Answer) -> list[Event]:
        return [*(() if self.output else self._text_events("")), *self._closing_events(_status(answer))]

    def failure(self, error: SteeringError) -> tuple[Event, ...]:
        """See GenerationWork.failure. By its `error` the `openai` package knows that it has to raise."""
        detail = body_of(error)["error"]
        said = {name: detail[name] for name in ("code", "message", "param")}
        return (self._event("error", **said, error=detail),)

    def _text_events(self, part: str | Thought) -> Iterator[Event]:
        """Yields the events of a piece of text or of a thought, of a new item where none of its kind is open."""
        if self.open and type(self.open[0]) is not type(part):
            yield from self._closing_events("completed")
        if not self.open:
            self.output.append({**_item(part), "status": "in_progress", "content": []})
            yield self._item_event("added")
            yield self._part_event(
                "response.content_part.added", part=_part(Thought("") if isinstance(part, Thought) else "")
            )
        self.open.append(part)
        if isinstance(part, Thought):
            yield self._part_event("response.reasoning_text.delta", delta=part.text)
        elif part:
            yield self._part_event("response.output_text.delta", delta=part, logprobs=[])

    def _closing_events(self, status: str) -> Iterator[Event]:
        """Yields the events at the end of an item of text or of a thought, if one is open."""
        if not self.open:
            return
        whole: Part = next(iter(joined(self.open)), "")
        self.open.clear()
        assert not isinstance(whole, Call)
        self.output[-1] |= {"status": status, "content": [_part(whole)]}
        if isinstance(whole, Thought):
            yield self._part_event("response.reasoning_text.done", text=whole.text)
        else:
            yield self._part_event("response.output_text.done", text=whole, logprobs=[])
        yield self._part_event("response.content_part.done", part=_part(whole))
        yield self._item_event("done")

    def _call_events(self, call: Call) -> Iterator[Event]:
        """Yields the events of a call, which arrives as a whole."""
        yield from self._closing_events("completed")
        name = f"fc_{secrets.token_hex(12)}"
        item = {"id": name, "type": "function_call", "call_id": call.id, "name": call.name}
        self.output.append({**item, "arguments": "", "status": "in_progress"})
        yield self._item_event("added")
        self.output[-1] = {**item, "arguments": call.arguments, "status": "completed"}
        place = {"item_id": name, "output_index": len(self.output) - 1}
        yield self._event("response.function_call_arguments.delta", **place, delta=call.arguments)
        yield self._event("response.function_call_arguments.done", **place, arguments=call.arguments)
        yield self._item_event("done")

    def _item_event(self, what: str) -> Event:
        item = dict(self.output[-1])
        return self._event(f"response.output_item.{what}", output_index=len(self.output) - 1, item=item)

    def _part_event(self, name: str, **fields: Any) -> Event:
        place = {"item_id": self.output[-1]["id"], "output_index": len(self.output) - 1, "content_index": 0}
        return self._event(name, **place, **fields)

    def _state_event(self, name: str, response: dict[str, Any]) -> Event:
        event = self._event(f"response.{name}", response=response)
        # encoded here, in a thread: the response repeats the request, which may be large
        return event._replace(data=json.dumps(event.data))

    def _event(self, name: str, **fields: Any) -> Event:
        self.sent += 1
        return Event({"type": name, "sequence_number": self.sent - 1, **fields}, name)

    def _described(self, answer: Answer | None = None) -> dict[str, Any]:
        """Describes the response. answer: where it is whole."""
        asked, sampling = self.asked, self.generations[0].request.sampling
        choice = asked.tool_choice or "auto"
        described = {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": "in_progress" if answer is None else _status(answer),
            "error": None,
            "incomplete_details": None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata or {},
            "model": asked.model,
            "output": list(self.output),
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": None,
            "store": False,
            "temperature": sampling.temperature,
            "text": None if asked.text is None else asked.text.model_dump(mode="json", exclude_none=True),
            "tool_choice": choice if isinstance(choice, str) else choice.model_dump(mode="json"),
            "tools": [tool.model_dump(mode="json") for tool in asked.tools or ()],
            "top_p": sampling.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": asked.user,
        }
        if answer is None:
            return described
        reason = _INCOMPLETE.get(answer.finish.reason)
        details = None if reason is None else {"reason": reason}
        usage = _usage(answer.finish, self.reasoning_tokens([answer]))
        return {**described, "incomplete_details": details, "usage": usage, **self.facts(answer)}


def _status(answer: Answer) -> str:
    return "incomplete" if answer.finish.reason in _INCOMPLETE else "completed"


def _item(part: str | Thought) -> dict[str, Any]:
    if isinstance(part, Thought):
        return {"id": f"rs_{secrets.token_hex(12)}", "type": "reasoning", "summary": []}
    return {"id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant"}


def _part(part: str | Thought) -> dict[str, Any]:
    if isinstance(part, Thought):
        return {"type": "reasoning_text", "text": part.text}
    return {"type": "output_text", "text": part, "annotations": [], "logprobs": []}


def _usage(finish: Finish, reasoning: int) -> dict[str, Any]:
    return {
        "input_tokens": finish.prompt_tokens,
        "input_tokens_details": {"cached_tokens": finish.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": finish.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": finish.prompt_tokens + finish.completion_tokens,
    }
