"""Builds the parts of OpenAI responses: usage, applied steering, log-probabilities."""

import secrets
from collections.abc import Sequence
from typing import Any

from app.openai.generation import OpenAIWork
from app.services.generation.flags import NO_FLAGS
from app.services.generation.responses import applied_steering
from steering.engine.api import Finish, TokenEvent, Tokenizer
from steering.workflows.generate import Answer


def response_id(prefix: str) -> str:
    """Returns a new id."""
    return f"{prefix}-{secrets.token_hex(12)}"


def envelope(work: OpenAIWork, identifier: str, kind: str) -> dict[str, Any]:
    """Returns the fields that every response and chunk starts with."""
    return {
        "id": identifier,
        "object": kind,
        "created": work.created,
        "model": work.model.name,
        "system_fingerprint": work.context.engine.info.fingerprint[:16],
    }


def usage_of(answers: Sequence[Answer], prompts: int) -> dict[str, Any]:
    """Counts tokens; each prompt is counted once, however many choices it has."""
    each = len(answers) // prompts
    first = [answers[index * each].finish for index in range(prompts)]
    prompt = sum(finish.prompt_tokens for finish in first)
    completion = sum(answer.finish.completion_tokens for answer in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(finish.cached_tokens for finish in first)},
    }


def steering_extension(work: OpenAIWork, answers: Sequence[Answer], *, recorded: bool = True) -> dict[str, Any]:
    """Returns `seed` and `steering`, which OpenAI's API does not have; clients keep them as extra fields.

    The replay record is of the first prompt. recorded: False where nothing was generated that could be replayed.
    """
    reports = [answer.finish.steering for answer in answers]
    work.context.state.metrics.observe_dose(reports)
    first = work.generations[0]
    applied = applied_steering(work.plan, reports, first.record if recorded else None, first.warnings)
    seed = first.request.sampling.seed
    return {"seed": seed, "steering": applied.model_dump(mode="json", exclude_none=True)}


def finish_reason(finish: Finish) -> str:
    """Returns why an answer ended, in OpenAI's terms."""
    return "content_filter" if finish.reason == "monitor" else finish.reason


def flags_extension(answer: Answer) -> dict[str, Any]:
    """Returns `flags` of a choice: the monitors that were raised. Nothing where none was."""
    flags = NO_FLAGS.raised(answer) or ()
    return {"flags": [one.model_dump(mode="json", exclude_none=True) for one in flags]} if flags else {}


def chat_logprobs(events: Sequence[TokenEvent], tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns the log-probabilities of chat tokens."""

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
