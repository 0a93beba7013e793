"""POST /v1/chat/completions: prepares, runs and answers a chat completion, plain or as a stream."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from app.http.sse import Event
from app.openai.generation import OpenAIWork, events, run
from app.openai.generation import prepare as prepare_generation
from app.openai.responses import (
    chat_logprobs,
    envelope,
    finish_reason,
    flags_extension,
    response_id,
    steering_extension,
    usage_of,
)
from app.openai.schemas import ChatRequest
from app.services.context import Context
from app.services.limits import check_limit
from steering.engine.api import TokenEvent
from steering.pairs import ChatMessage
from steering.workflows.generate import Answer, assemble

DONE = Event("[DONE]")


async def prepare(context: Context, body: ChatRequest) -> OpenAIWork:
    """Resolves the request. Without a limit an answer may fill the context, as OpenAI's own models do."""
    check_limit(len(body.messages), context.settings.max_messages, "messages", "messages")
    messages = tuple(ChatMessage("system" if one.role == "developer" else one.role, one.text) for one in body.messages)
    limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return await prepare_generation(context, body, [messages], limit, logprobs)


async def answer(work: OpenAIWork) -> dict[str, Any]:
    """Runs the request and builds the response."""
    answers = await run(work)
    return {
        **envelope(work, response_id("chatcmpl"), "chat.completion"),
        "choices": [_choice(work, index, one) for index, one in enumerate(answers)],
        "usage": usage_of(answers, 1),
        **steering_extension(work, answers),
    }


def _choice(work: OpenAIWork, index: int, one: Answer) -> dict[str, Any]:
    tokenizer = work.context.engine.tokenizer
    return {
        "index": index,
        "message": {"role": "assistant", "content": one.text, "refusal": None},
        "logprobs": chat_logprobs(one.events, tokenizer) if work.generations[0].tokens else None,
        "finish_reason": finish_reason(one.finish),
        **flags_extension(one),
    }


async def chunks(work: OpenAIWork, include_usage: bool) -> AsyncGenerator[Event, None]:
    """Yields a role chunk for each choice, text chunks, finish chunks, the usage if requested, and [DONE]."""
    head = envelope(work, response_id("chatcmpl"), "chat.completion.chunk")
    usage: dict[str, Any] = {"usage": None} if include_usage else {}
    observed: list[list[TokenEvent]] = [[] for _ in range(work.n)]
    finished = 0
    async with aclosing(events(work)) as arriving:
        async for index, event in arriving:
            if not observed[index]:
                delta = {"role": "assistant", "content": "", "refusal": None}
                yield Event({**head, "choices": [_delta(index, delta)], **usage})
            observed[index].append(event)
            if event.text or (event.token_id >= 0 and work.generations[0].tokens):
                logprobs = None
                if work.generations[0].tokens:
                    logprobs = chat_logprobs([event], work.context.engine.tokenizer)
                yield Event({**head, "choices": [_delta(index, {"content": event.text}, logprobs)], **usage})
            if event.finish is not None:
                finished += 1
                last = finished == work.n and not include_usage
                extension = _extension(work, observed) if last else {}
                choice = _delta(index, {}, None, finish_reason(event.finish))
                choice |= flags_extension(assemble(observed[index]))
                yield Event({**head, "choices": [choice], **usage, **extension})
    if include_usage:
        answers = [assemble(one) for one in observed]
        yield Event({**head, "choices": [], "usage": usage_of(answers, 1), **_extension(work, observed)})
    yield DONE


def _extension(work: OpenAIWork, observed: list[list[TokenEvent]]) -> dict[str, Any]:
    return steering_extension(work, [assemble(one) for one in observed])


def _delta(
    index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, reason: str | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
