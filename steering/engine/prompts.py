"""Tokenizes prompts and checks them against the model's context, for engines and their callers alike."""

from collections.abc import Sequence
from dataclasses import replace

from steering.engine.api import Prompt, Tokenizer
from steering.errors import ContextLengthExceeded, InvalidRequest
from steering.model.info import ModelInfo
from steering.pairs import ChatMessage
from steering.plan.types import UNSTEERED, SteeringPlan
from steering.threads import run_in_thread

MAX_INLINE_CHARACTERS = 2_000
"""A longer prompt is tokenized in a thread, so that the event loop keeps serving others (about 1 ms for so many)."""


async def encode_prompt(tokenizer: Tokenizer, prompt: Prompt) -> tuple[int, ...]:
    """Returns the token ids of a prompt, without blocking the event loop. Raises what `Tokenizer.encode` raises."""
    return (await encode_steered(tokenizer, prompt, UNSTEERED))[0]


def encode_with_plans(
    tokenizer: Tokenizer, prompt: Prompt, plans: Sequence[SteeringPlan]
) -> tuple[tuple[int, ...], tuple[SteeringPlan, ...]]:
    """Returns the token ids of a prompt, and the plans with the roles of its tokens where a scope of theirs asks for them.

    The prompt is tokenized once. Raises InvalidRequest where roles are asked for and the prompt has no messages.
    """
    if not any(map(_lacks_roles, plans)):
        return tokenizer.encode(prompt), tuple(plans)
    if isinstance(prompt, str) or not (prompt and isinstance(prompt[0], ChatMessage)):
        raise InvalidRequest("scope.roles needs a prompt of messages: tokens of a text have no role", param="scope")
    ids, roles = tokenizer.encode_with_roles(prompt)
    return ids, tuple(replace(plan, prompt_roles=roles) if _lacks_roles(plan) else plan for plan in plans)


async def encode_steered(
    tokenizer: Tokenizer, prompt: Prompt, plan: SteeringPlan
) -> tuple[tuple[int, ...], SteeringPlan]:
    """Does what `encode_with_plans` does for one plan, without blocking the event loop. To be called by whoever goes on with the
    token ids alone; engines do it for conversations."""
    if prompt_size(prompt) > MAX_INLINE_CHARACTERS or _lacks_roles(plan):
        ids, (with_roles,) = await run_in_thread(encode_with_plans, tokenizer, prompt, (plan,))
        return ids, with_roles
    return tokenizer.encode(prompt), plan


def _lacks_roles(plan: SteeringPlan) -> bool:
    return plan.prompt_roles is None and plan.needs_roles


def prompt_size(prompt: Prompt) -> int:
    """Returns the characters of a text or conversation, or the number of token ids."""
    if isinstance(prompt, str):
        return len(prompt)
    return sum(len(part.content) if isinstance(part, ChatMessage) else 1 for part in prompt)


def check_context(prompt_tokens: int, max_tokens: int, info: ModelInfo, *, param: str | None = None) -> None:
    """Raises ContextLengthExceeded where a prompt and the tokens asked for do not fit the model's context.

    param: the field that holds the prompt or text; by default the field that would have to be smaller.
    """
    if prompt_tokens + max_tokens <= info.context_length:
        return
    asked = f" and max_tokens is {max_tokens}" if max_tokens else ""
    raise ContextLengthExceeded(
        f"the prompt has {prompt_tokens} tokens{asked}; the model's context holds {info.context_length}",
        param=param or ("max_tokens" if max_tokens > 0 and prompt_tokens < info.context_length else "prompt"),
    )
