"""The evaluation `choices` of POST /v1/evaluations: its checks, and its work."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

from app.api.context import Context
from app.api.jobs import Prepared
from app.api.reading import score_bytes
from app.core.admission import SCORED_REQUESTS, check_limit
from steering.errors import within
from steering.lab import choices
from steering.plan.types import SteeringPlan
from steering.schemas.choices import ChoiceItem, ChoicesRequest
from steering.threads import run_in_thread
from steering.workflows.generate import Progress
from steering.workflows.readout import grouped


async def prepare_choices(context: Context, body: ChoicesRequest) -> Prepared:
    """Checks the request and reserves its memory. Its tokens are those of every prompt that is read. Raises LimitExceeded,
    InvalidRequest, ContextLengthExceeded, OutOfMemory, Overloaded."""
    check_limit(len(body.items), context.settings.max_texts, "items", "items")
    plan = await context.plan(body.steering)
    plans = (await context.plan(()), plan) if plan.own else (plan,)
    prompts = sum(len(item.choices) for item in body.items) * len(plans)
    what = "prompts to read (one for each rotation of the choices)"
    check_limit(prompts, context.settings.max_evaluation_answers, what, "items")
    tokens, memory = await run_in_thread(_cost, context, body.items, plans)
    context.admission.reserve(memory)

    async def run(progress: Progress) -> dict[str, Any]:
        found = await choices.measure(context.engine, body.items, plans, cache_salt=context.key.name, progress=progress)
        return found.model_dump(mode="json")

    return tokens, run


def _cost(context: Context, items: Sequence[ChoiceItem], plans: Sequence[SteeringPlan]) -> tuple[int, int]:
    """Returns the tokens of all prompts under all plans, and the bytes that are held at a time. Raises LimitExceeded as soon as
    there are too many, and what encoding raises. No token ids are kept: `choices.measure` encodes a part of the items at a time."""
    engine, tokens = context.engine, 0
    choices.letter_tokens(engine.tokenizer, max(len(item.choices) for item in items))
    lengths: list[list[int]] = []
    for index, item in enumerate(items):
        with within(f"items.{index}", fields=False):
            prompts = choices.item_prompts(engine, item, plans)
        lengths.append([len(one.ids) for one, *_ in prompts])
        tokens += len(plans) * sum(lengths[-1])
        check_limit(tokens, SCORED_REQUESTS * context.settings.max_scored_tokens, "tokens", "items")
    held = [list(chain.from_iterable(part)) for part in grouped(lengths, len, choices.PROMPTS_AT_ONCE)]
    return tokens, max(score_bytes(engine.info.vocab_size, part, [1] * len(part)) for part in held)
