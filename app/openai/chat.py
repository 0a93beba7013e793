"""POST /v1/chat/completions: prepares, runs and answers a chat completion, plain or as a stream."""

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from starlette.responses import Response

from app.http.answers import json_in_thread
from app.http.sse import Event
from app.openai.generation import OpenAIWork, admit, ending, envelope, response, run, stream
from app.openai.generation import prepare as prepare_generation
from app.openai.schemas import ChatRequest
from app.services.context import Context
from app.services.limits import check_limit
from steering.engine.api import TokenEvent
from steering.pairs import ChatMessage


async def prepare(context: Context, body: ChatRequest) -> OpenAIWork:
    """Resolves the request and admits it. Without a limit an answer ends by itself, or at `chat_max_tokens`."""
    check_limit(len(body.messages), context.settings.max_messages, "messages", "messages")
    messages = tuple(ChatMessage("system" if one.role == "developer" else one.role, one.text) for one in body.messages)
    limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return admit(await prepare_generation(context, body, [messages], limit, logprobs))


async def answer(work: OpenAIWork) -> Response:
    """Runs the request and builds the response."""
    answers = await run(work)

    def build() -> dict[str, Any]:
        described = [
            {
                "index": index,
                "message": {"role": "assistant", "content": one.text, "refusal": None},
                "logprobs": _logprobs(work, one.events),
                **ending(one),
            }
            for index, one in enumerate(answers)
        ]
        return response(work, envelope(work, "chatcmpl", "chat.completion"), described, answers)

    return await json_in_thread(build)


def chunks(work: OpenAIWork, body: ChatRequest) -> AsyncGenerator[Event, None]:
    """Yields a role chunk for each choice, text chunks, finish chunks, the usage if requested, and [DONE]."""
    begun: set[int] = set()

    def describe(index: int, event: TokenEvent) -> list[dict[str, Any]]:
        found: list[tuple[dict[str, Any], dict[str, Any] | None]] = []
        if index not in begun:
            begun.add(index)
            found.append(({"role": "assistant", "content": "", "refusal": None}, None))
        if event.text or (event.token_id >= 0 and work.generations[0].tokens):
            found.append(({"content": event.text}, _logprobs(work, [event])))
        if event.finish is not None:
            found.append(({}, None))
        return [{"index": index, "delta": one, "logprobs": log, "finish_reason": None} for one, log in found]

    return stream(work, envelope(work, "chatcmpl", "chat.completion.chunk"), describe, include_usage=body.include_usage)


def _logprobs(work: OpenAIWork, events: Sequence[TokenEvent]) -> dict[str, Any] | None:
    """Returns the log-probabilities of tokens, None where they were not requested."""
    if not work.generations[0].tokens:
        return None
    tokenizer = work.context.engine.tokenizer

    def entry(token: int, logprob: float) -> dict[str, Any]:
        text = tokenizer.token_text(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8", errors="replace"))}

    content = [
        {
            **entry(event.token_id, event.logprob),
            "top_logprobs": [entry(token, logprob) for token, logprob in event.top_logprobs],
        }
        for event in events
        if event.token_id >= 0 and event.logprob is not None
    ]
    return {"content": content, "refusal": None}
